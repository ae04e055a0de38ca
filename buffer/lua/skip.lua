-- Never issue tickets below a number.
-- ARGV     2 first ticket that may still be issued
-- Returns  1
-- Invariant: `next` and `limit` never fall, and next <= limit.
local first = tonumber(ARGV[2])
for _, field in ipairs({'limit', 'next'}) do
  if tonumber(redis.call('HGET', TICKETS, field) or '0') < first then
    redis.call('HSET', TICKETS, field, ARGV[2])
  end
end
return 1
