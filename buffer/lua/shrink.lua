-- Evict what is above the capacity, at most so many records.
-- ARGV     2 capacity in records, 3 capacity in bytes or 0, 4 'oldest' or 'lowest_priority', 5 most
-- Returns  how many were evicted
local found = above(tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]))
evict(found)
return #found
