-- A claimed record could not be scored: queue it again or quarantine it.
-- ARGV     2 id, 3 reason, 4 '1' to retry, 5 most attempts, 6 entry that was claimed, '' for any,
--          7 who claimed it
-- Returns  1 if quarantined, 0 if queued again, -1 if it was not ours to fail any more
-- Invariant: one claim counts one attempt, however often the command is sent.
local id = ARGV[2]
local entry = redis.call('HGET', ENTRIES, id)
if not entry or (ARGV[6] ~= '' and (ARGV[6] ~= entry or not is_held(entry, ARGV[7]))) then
  return -1
end
local attempts = redis.call('HINCRBY', ATTEMPTS, id, 1)
if ARGV[4] == '1' and attempts < tonumber(ARGV[5]) then
  -- A new entry, not a claim given up: it wakes the servers that wait for one.
  redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
  redis.call('HINCRBY', COUNTS, 'retried', 1)
  dequeue(entry)
  return 0
end
quarantine(id, ARGV[3])
return 1
