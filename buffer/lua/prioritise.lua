-- Give live records new priorities.
-- ARGV     2 generation; then for each: id, priority
-- Returns  how many were changed
-- Invariant: the priority of a record is that of the highest generation, whatever comes late or
--            twice; a record that is gone does not come back.
local changed = 0
for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  local known = tonumber(redis.call('HGET', GENERATIONS, id) or '-1')
  if redis.call('ZSCORE', LIVE, id) and known < tonumber(ARGV[2]) then
    redis.call('HSET', GENERATIONS, id, ARGV[2])
    redis.call('ZADD', PRIORITIES, ARGV[at + 1], id)
    changed = changed + 1
  end
end
return changed
