-- Issue a ticket.
-- ARGV     2 lease id, 3 lease in ms, 4 first ticket of this server, 5 from one to its next
-- Returns  {ticket, policy version}, or nil if none may be issued; an error DAMAGED, with nothing
--          applied, if the version is not there
-- Invariant: a ticket has one holder; it leaves `leases` only by put.lua and skip.lua. The same
--            lease id twice (a command sent again) gives the same ticket. Leases of a run are alike:
--            one that ends later than two of them was given before the clock stepped back, and has
--            expired. Whoever is at work on it still may be the first to put.
local now = now_ms()
local number = tonumber(redis.call('HGET', HOLDERS, ARGV[2]) or '')
if not number then
  local latest = string.format('(%d', now + 2 * tonumber(ARGV[3]))
  for _, range in ipairs({{'-inf', string.format('%d', now)}, {latest, '+inf'}}) do
    for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', LEASES, range[1], range[2])) do
      number = math.min(number or tonumber(ticket), tonumber(ticket))
    end
  end
end
local fresh = false
if not number then
  number = tonumber(redis.call('HGET', TICKETS, 'next') or ARGV[4])
  if number >= tonumber(redis.call('HGET', TICKETS, 'limit') or '0') then
    return false
  end
  fresh = true
end
local name = string.format('%d', number)
local step = redis.call('ZRANGEBYSCORE', VERSIONS, '(' .. name, '+inf', 'LIMIT', 0, 1)[1]
local version = tonumber(string.match(step or '', ':(%d+)$'))
if not version then
  return redis.error_reply('DAMAGED ticket ' .. name .. ' has no policy version')
end
if fresh then
  redis.call('HSETNX', TICKETS, 'next', ARGV[4])
  redis.call('HINCRBY', TICKETS, 'next', ARGV[5])
end
redis.call('ZADD', LEASES, string.format('%d', now + tonumber(ARGV[3])), name)
local former = redis.call('HGET', HOLDERS, name)
redis.call('HSET', HOLDERS, name, ARGV[2], ARGV[2], name)
if former and former ~= ARGV[2] then
  redis.call('HDEL', HOLDERS, former)
end
return {number, version}
