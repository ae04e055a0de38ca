-- Queue claimed records again, for whoever asks next. No attempt is counted.
-- ARGV     2... id, entry that was claimed, who claimed it, ...
-- Returns  how many were queued
-- Invariant: a record has one entry in the queue.
local queued = 0
for at = 2, #ARGV, 3 do
  local id, entry = ARGV[at], ARGV[at + 1]
  if redis.call('HGET', ENTRIES, id) == entry and is_held(entry, ARGV[at + 2]) then
    redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
    dequeue(entry)
    queued = queued + 1
  end
end
return queued
