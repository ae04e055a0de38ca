-- Store a ticket's group and queue its records.
-- ARGV     2 ticket, 3 number of records; then for each: id, number of words, field, value, ...
-- Returns  1, or 0 if the ticket is not leased (put already, or never issued)
-- Invariant: a group is stored whole and once; whoever puts first wins.
if not redis.call('ZSCORE', LEASES, ARGV[2]) then
  return 0
end
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  local id, words = ARGV[at], tonumber(ARGV[at + 1])
  redis.call('HSET', payload(id), unpack(ARGV, at + 2, at + 1 + words))
  redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
  at = at + 2 + words
end
redis.call('HSET', OPEN, ARGV[2], ARGV[3])
redis.call('HINCRBY', COUNTS, 'issued', ARGV[3])
redis.call('ZREM', LEASES, ARGV[2])
redis.call('HDEL', HOLDERS, ARGV[2])
return 1
