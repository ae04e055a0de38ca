-- Give records their rewards and evict the oldest above the capacity.
-- ARGV     2 capacity in records; then for each: id, number of scored latents, scores frame
-- Returns  how many records were new; an error BADSCORES, with nothing applied, if a number differs
-- Invariant: a record enters the log once, with its rewards, in the step that takes it off the
--            queue; `live` holds the newest `capacity` committed records.
local function is_open(id)
  return redis.call('HEXISTS', ENTRIES, id) == 1
end

for at = 3, #ARGV, 3 do
  local expected = redis.call('HGET', payload(ARGV[at]), 'n')
  if is_open(ARGV[at]) and expected ~= ARGV[at + 1] then
    return redis.error_reply('BADSCORES ' .. ARGV[at] .. ' has ' .. tostring(expected)
      .. ' scored latents, its rewards have ' .. ARGV[at + 1] .. ' numbers')
  end
end

local new = 0
for at = 3, #ARGV, 3 do
  local id = ARGV[at]
  if is_open(id) then
    local header = redis.call('HGET', payload(id), 'h')
    local position = redis.call('XADD', LOG, '*', 'k', 'c', 'h', header, 's', ARGV[at + 2])
    redis.call('RPUSH', LIVE, id .. ' ' .. position)
    finish(id)
    new = new + 1
  end
end
if new == 0 then
  return 0
end
redis.call('HINCRBY', COUNTS, 'committed', new)

local surplus = redis.call('LLEN', LIVE) - tonumber(ARGV[2])
local upto
for _ = 1, surplus do
  local id, position = string.match(redis.call('LPOP', LIVE), '^(%S+) (%S+)$')
  redis.call('UNLINK', payload(id))
  upto = position
end
if upto then
  redis.call('XADD', LOG, '*', 'k', 'e', 'upto', upto)
  redis.call('HINCRBY', COUNTS, 'evicted', surplus)
  -- Keep the log bounded, but leave a slow reader room to see what was evicted meanwhile.
  local live = redis.call('LLEN', LIVE)
  if redis.call('XLEN', LOG) > 4 * live + 4096 then
    local floor = string.match(redis.call('LINDEX', LIVE, 0), ' (%S+)$')
    redis.call('XTRIM', LOG, 'MINID', floor)
  end
end
return new
