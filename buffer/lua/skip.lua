-- Never issue tickets below a number, again either.
-- ARGV     2 first ticket that may still be issued, 3 first of this server's that may
-- Returns  1
-- Invariant: `next` and `limit` never fall; a ticket below `next` was admitted or is skipped. No
--            lease is left below the number: what is made of one is dropped.
for field, first in pairs({limit = ARGV[2], next = ARGV[3]}) do
  if tonumber(redis.call('HGET', TICKETS, field) or '0') < tonumber(first) then
    redis.call('HSET', TICKETS, field, first)
  end
end
for _, ticket in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  if tonumber(ticket) < tonumber(ARGV[2]) then
    redis.call('ZREM', LEASES, ticket)
    redis.call('HDEL', HOLDERS, ticket, redis.call('HGET', HOLDERS, ticket) or '')
  end
end
return 1
