-- Claim records whose claim has expired; quarantine those that expired too often.
-- ARGV     2 owner, 3 lease in ms, 4 most records, 5 most attempts
-- Returns  {entry, id, entry, id, ...} of the claimed ones
-- Invariant: a record that kills every server that claims it ends in quarantine.
local claimed = {}
local idle = redis.call('XPENDING', PENDING, GROUP, 'IDLE', ARGV[3], '-', '+', ARGV[4])
for _, item in ipairs(idle) do
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
