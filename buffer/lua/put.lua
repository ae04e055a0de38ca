-- Store a ticket's group, whose payloads lie in keys that expire, and queue its records.
-- ARGV     2 ticket; then for each record: id, key that holds its payload, bytes of it, ''; or of one
--          that could not be made: id, '', 0, reason
-- Returns  1, or 0 if the ticket is not leased (put already, or never issued); with nothing applied
--          an error OOM when PUT_SHARE of the server's maxmemory is used, or LOST if a payload is gone
-- Invariant: a group is stored whole and once; whoever puts first wins. The rest is left to commits,
--            which make room. Latents of failed records give way first: no capacity bounds them.
local MOST_GIVEN_UP = 100

local function give_up_failed_latents()
  local given_up = 0
  for _, id in ipairs(redis.call('ZRANGE', QUARANTINE, 0, -1)) do
    if redis.call('HEXISTS', SIZES, id) == 1 then
      drop_payload(id)
      given_up = given_up + 1
    end
    if given_up == MOST_GIVEN_UP then
      return
    end
  end
end

local memory = redis.call('INFO', 'memory')
local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)') or '0')
if most > 0 and tonumber(string.match(memory, '\nused_memory:(%d+)')) > PUT_SHARE * most then
  give_up_failed_latents()
  return redis.error_reply('OOM command not allowed: ' .. PUT_SHARE .. ' of maxmemory is used')
end
if not redis.call('ZSCORE', LEASES, ARGV[2]) then
  return 0
end
for at = 3, #ARGV, 4 do
  if ARGV[at + 1] ~= '' and redis.call('EXISTS', ARGV[at + 1]) == 0 then
    return redis.error_reply('LOST the payload of ' .. ARGV[at] .. ' expired before it was put')
  end
end
local records = 0
for at = 3, #ARGV, 4 do
  local id = ARGV[at]
  redis.call('HSET', ENTRIES, id, redis.call('XADD', PENDING, '*', 'id', id))
  if ARGV[at + 1] ~= '' then
    redis.call('HSET', SIZES, id, ARGV[at + 2])
    redis.call('RENAME', ARGV[at + 1], payload(id))
    redis.call('PERSIST', payload(id))
  end
  records = records + 1
end
redis.call('HSET', OPEN, ARGV[2], records)
redis.call('HINCRBY', COUNTS, 'issued', records)
for at = 3, #ARGV, 4 do
  if ARGV[at + 1] == '' then
    quarantine(ARGV[at], ARGV[at + 3])
  end
end
redis.call('ZREM', LEASES, ARGV[2])
redis.call('HDEL', HOLDERS, ARGV[2], redis.call('HGET', HOLDERS, ARGV[2]) or '')
return 1
