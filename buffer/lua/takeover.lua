-- Claim records whose claim has expired; quarantine those that expired too often.
-- ARGV     2 owner, 3 lease in ms, 4 most records, 5 most attempts
-- Returns  {entry, id, entry, id, ...} of the claimed ones
-- Invariant: a record that kills every server that claims it ends in quarantine. A claim that was
--            made later than one lease from now was made before the clock stepped back, and has
--            expired: its turn comes among the oldest.
local function value_of(name, flat)
  for at = 1, #flat, 2 do
    if flat[at] == name then
      return flat[at + 1]
    end
  end
end

-- Of the oldest claims {entry, consumer, ...}, those of before the clock stepped back.
local function ahead_of_time(most)
  local has_any = false
  -- Redis calls the idle time 0 that is below it. Of few others is it, and the rest is slower.
  for _, item in ipairs(redis.call('XPENDING', PENDING, GROUP, '-', '+', most)) do
    has_any = has_any or item[3] == 0
  end
  local found = {}
  local groups = has_any
    and value_of('groups', redis.call('XINFO', 'STREAM', PENDING, 'FULL', 'COUNT', most)) or {}
  for _, group in ipairs(groups) do
    local claims = value_of('name', group) == GROUP and value_of('pending', group) or {}
    for _, item in ipairs(claims) do
      if item[3] > now_ms() + tonumber(ARGV[3]) then
        found[#found + 1] = item
      end
    end
  end
  return found
end

local claimed = {}
local expired = redis.call('XPENDING', PENDING, GROUP, 'IDLE', ARGV[3], '-', '+', ARGV[4])
if #expired == 0 then
  expired = ahead_of_time(ARGV[4])
end
for _, item in ipairs(expired) do
  local entry, consumer = item[1], item[2]
  local found = redis.call('XRANGE', PENDING, entry, entry)[1]
  if not found or redis.call('HGET', ENTRIES, found[2][2]) ~= entry then
    dequeue(entry)  -- nobody could ever finish it
  else
    local id = found[2][2]
    local attempts = redis.call('HINCRBY', ATTEMPTS, id, 1)
    if attempts >= tonumber(ARGV[5]) then
      quarantine(id, 'failed ' .. attempts .. ' times; the last claim, by ' .. consumer
        .. ', expired without an answer')
    else
      redis.call('XCLAIM', PENDING, GROUP, ARGV[2], 0, entry)
      redis.call('HINCRBY', COUNTS, 'retried', 1)
      claimed[#claimed + 1] = entry
      claimed[#claimed + 1] = id
    end
  end
end
return claimed
