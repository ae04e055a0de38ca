-- All counts at one instant.
-- ARGV     2 first ticket of this server, 3 from one to its next
-- Returns  admitted, issued, leased, open tickets, issued records, pending, claimed, committed,
--          failed, retried, evicted, live, bytes of the live ones
local tickets = redis.call('HMGET', TICKETS, 'limit', 'next')
local counts = redis.call('HMGET', COUNTS, 'issued', 'committed', 'failed', 'retried', 'evicted',
  'live_bytes')
local function number(value)
  -- A nil would end the answer here: -1 says that a count is damaged.
  return tonumber(value or '0') or -1
end
return {
  number(tickets[1]), math.floor((number(tickets[2] or ARGV[2]) - ARGV[2]) / ARGV[3]),
  redis.call('ZCARD', LEASES), redis.call('HLEN', OPEN),
  number(counts[1]), redis.call('HLEN', ENTRIES),
  redis.call('XPENDING', PENDING, GROUP)[1],
  number(counts[2]), number(counts[3]), number(counts[4]), number(counts[5]),
  redis.call('ZCARD', LIVE), number(counts[6]),
}
