-- Allow tickets below a limit and fix the policy version of those that are new.
-- ARGV     2 limit, 3 policy version, 4 token of the start that admits, '' for a tool
-- Returns  1 if the limit rose, else 0; with nothing applied an error TAKEN if the run is owned by
--          another start, or NOGROUP if the server has lost it
-- Invariant: limits and versions of earlier tickets never change. A server that lost the run does not
--            issue its tickets from the first one again.
redis.call('XPENDING', PENDING, GROUP)
local owner = redis.call('HGET', TICKETS, 'owner')
if ARGV[4] ~= '' and owner and owner ~= ARGV[4] then
  return redis.error_reply('TAKEN by ' .. owner)
end
local limit = tonumber(ARGV[2])
local old = tonumber(redis.call('HGET', TICKETS, 'limit') or '0')
if limit <= old then
  return 0
end
redis.call('ZADD', VERSIONS, limit, ARGV[2] .. ':' .. ARGV[3])
redis.call('HSET', TICKETS, 'limit', ARGV[2])

-- Steps that no ticket can ask for again.
local lowest = tonumber(redis.call('HGET', TICKETS, 'next') or '0')
for _, ticket in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  lowest = math.min(lowest, tonumber(ticket))
end
redis.call('ZREMRANGEBYSCORE', VERSIONS, '-inf', string.format('%d', lowest))
return 1
