-- Queue quarantined records again, as if they had never failed.
-- ARGV     2... ids
-- Returns  how many were queued; those whose latents are gone are not
-- Invariant: a record is in quarantine or in the queue, never in both.
local queued = 0
for at = 2, #ARGV do
  local id = ARGV[at]
  if redis.call('ZSCORE', QUARANTINE, id) and redis.call('EXISTS', payload(id)) == 1 then
    redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
    redis.call('HINCRBY', OPEN, ticket_of(id), 1)
    redis.call('HINCRBY', COUNTS, 'failed', -1)
    redis.call('ZREM', QUARANTINE, id)
    redis.call('HDEL', REASONS, id)
    queued = queued + 1
  end
end
return queued
