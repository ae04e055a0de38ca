-- Keep claims: their leases begin anew.
-- ARGV     2 owner; then the entries that it has claimed
-- Returns  how many are still the owner's
-- Invariant: only the present holder keeps a claim.
local kept = 0
for at = 3, #ARGV do
  if is_held(ARGV[at], ARGV[2]) then
    redis.call('XCLAIM', PENDING, GROUP, ARGV[2], 0, ARGV[at], 'JUSTID')
    kept = kept + 1
  end
end
return kept
