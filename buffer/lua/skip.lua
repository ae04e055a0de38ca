-- Never issue tickets below a number.
-- ARGV     2 first ticket that may still be issued, 3 first of this server's that may
-- Returns  1
-- Invariant: `next` and `limit` never fall; a ticket below `next` was admitted or is skipped.
for field, first in pairs({limit = ARGV[2], next = ARGV[3]}) do
  if tonumber(redis.call('HGET', TICKETS, field) or '0') < tonumber(first) then
    redis.call('HSET', TICKETS, field, first)
  end
end
return 1
