-- Store a ticket's group and queue its records.
-- ARGV     2 ticket, 3 number of records; then for each: id, number of words, field, value, ...
-- Returns  1, or 0 if the ticket is not leased (put already, or never issued); an error OOM, with
--          nothing applied, when 9/10 of the server's maxmemory are used
-- Invariant: a group is stored whole and once; whoever puts first wins. The last tenth is left to
--            commits, which make room.
local memory = redis.call('INFO', 'memory')
local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)') or '0')
if most > 0 and tonumber(string.match(memory, '\nused_memory:(%d+)')) > 0.9 * most then
  return redis.error_reply('OOM command not allowed: 9/10 of maxmemory are used')
end
if not redis.call('ZSCORE', LEASES, ARGV[2]) then
  return 0
end
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  local id, words = ARGV[at], tonumber(ARGV[at + 1])
  redis.call('HSET', payload(id), unpack(ARGV, at + 2, at + 1 + words))
  redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
  local bytes = 0
  for word = at + 2, at + 1 + words do
    bytes = bytes + #ARGV[word]
  end
  redis.call('HSET', SIZES, id, bytes)
  at = at + 2 + words
end
redis.call('HSET', OPEN, ARGV[2], ARGV[3])
redis.call('HINCRBY', COUNTS, 'issued', ARGV[3])
redis.call('ZREM', LEASES, ARGV[2])
redis.call('HDEL', HOLDERS, ARGV[2])
return 1
