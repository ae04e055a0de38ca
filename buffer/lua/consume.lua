-- Evict live records of tickets below a number, at most so many of them.
-- ARGV     2 first ticket that stays, 3 most records
-- Returns  how many were evicted
local ids = redis.call('ZRANGEBYSCORE', LIVE, '-inf', '(' .. ARGV[2] .. '000', 'LIMIT', 0, ARGV[3])
evict(ids)
return #ids
