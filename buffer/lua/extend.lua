-- Let a lease end at another time: later (renew) or now (return).
-- ARGV     2 ticket, 3 lease id, 4 ms from now
-- Returns  1, or 0 if the lease is another's or its group is put
-- Invariant: only the present holder moves a lease.
if redis.call('HGET', HOLDERS, ARGV[2]) ~= ARGV[3] then
  return 0
end
local expiry = now_ms() + tonumber(ARGV[4])
redis.call('ZADD', LEASES, string.format('%d', expiry), ARGV[2])
if tonumber(ARGV[4]) == 0 then
  redis.call('HDEL', HOLDERS, ARGV[2], ARGV[3])
end
return 1
