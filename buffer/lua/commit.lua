-- Give records their rewards, and evict what is above the capacity.
-- ARGV     2 capacity in records, 3 capacity in bytes or 0, 4 'oldest' or 'lowest_priority',
--          5 whose rewards they are; then for each: id, number of scored latents, scores frame
-- Returns  how many records were new; an error BADSCORES, with nothing applied, if a number differs
-- Invariant: a record enters the log once, with its rewards, in the step that takes it off the
--            queue. Afterwards `live` is within both capacities: what was removed came first by
--            ticket, or by priority and then by ticket.
local NEW_PRIORITY = '1'

local function is_open(id)
  return redis.call('HEXISTS', ENTRIES, id) == 1
end

for at = 6, #ARGV, 3 do
  local expected = redis.call('HGET', payload(ARGV[at]), 'n')
  if is_open(ARGV[at]) and expected ~= ARGV[at + 1] then
    return redis.error_reply('BADSCORES ' .. ARGV[at] .. ' has ' .. tostring(expected)
      .. ' scored latents, its rewards have ' .. ARGV[at + 1] .. ' numbers')
  end
end

local new, committed_at = 0, string.format('%d', now_ms())
for at = 6, #ARGV, 3 do
  local id = ARGV[at]
  if is_open(id) then
    local header = redis.call('HGET', payload(id), 'h')
    -- Its place in the queue begins with the time that it was queued at.
    local queued_at = string.match(redis.call('HGET', ENTRIES, id), '^%d+') or '0'
    local place = redis.call('XADD', LOG, '*', 'k', 'c', 'id', id, 'h', header, 's', ARGV[at + 2],
      'b', ARGV[5], 'q', queued_at, 'a', committed_at)
    redis.call('ZADD', LIVE, order_of(id), id)
    redis.call('ZADD', PRIORITIES, NEW_PRIORITY, id)
    redis.call('HSET', PLACES, id, place)
    redis.call('HINCRBY', COUNTS, 'live_bytes', redis.call('HGET', SIZES, id) or '0')
    finish(id)
    new = new + 1
  end
end
if new == 0 then
  return 0
end
redis.call('HINCRBY', COUNTS, 'committed', new)

local removed = above(tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4])
evict(removed)
local records = redis.call('ZCARD', LIVE)

-- Keep the log bounded, but leave a slow reader room to see what happened meanwhile. The first
-- entries go; those of records that are still live are written again at its end.
local surplus = math.min(redis.call('XLEN', LOG) - 4 * records - 4096, 2 * new + #removed)
if surplus > 0 then
  for _, entry in ipairs(redis.call('XRANGE', LOG, '-', '+', 'COUNT', surplus)) do
    local fields = entry[2]
    if fields[2] == 'c' and redis.call('HGET', PLACES, fields[4]) == entry[1] then
      redis.call('HSET', PLACES, fields[4], redis.call('XADD', LOG, '*', unpack(fields)))
    end
  end
  redis.call('XTRIM', LOG, 'MAXLEN', redis.call('XLEN', LOG) - surplus)
end
return new
