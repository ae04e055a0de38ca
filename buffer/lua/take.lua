-- Make this server a part of a run and the run a start's, before anything of it is admitted.
-- ARGV     2 '1' to write, '' to look only; 3 shard, such as '1/3'; 4 format of records;
--          5 token of the start, '' for a tool; 6 '1' if the run begins, '' if it goes on;
--          then the tokens of earlier starts out of the same folder
-- Returns  nil, or what is in the way and nothing is written: {'format', the one there},
--          {'shard', the one there}, {'owner', its token}, {'tickets', ''}
-- Invariant: shard and format never change. The owner does only for one that knows its token; a run
--            that begins owns no tickets but its own.
local shard = redis.call('HGET', TICKETS, 'shard')
local format = redis.call('HGET', TICKETS, 'format')
local owner = redis.call('HGET', TICKETS, 'owner')
local token = ARGV[5]
if (shard or format) and format ~= ARGV[4] then
  return {'format', format or '1'}
end
if shard and shard ~= ARGV[3] then
  return {'shard', shard}
end
if token ~= '' and owner ~= token then
  local is_known = not owner
  for at = 7, #ARGV do
    is_known = is_known or owner == ARGV[at]
  end
  if not is_known then
    return {'owner', owner}
  end
  -- Of a program that wrote no owner: whoever goes on with it owns it from now on.
  if ARGV[6] == '1' and (redis.call('HEXISTS', TICKETS, 'limit') == 1
    or redis.call('HEXISTS', TICKETS, 'next') == 1) then
    return {'tickets', ''}
  end
end
if ARGV[2] ~= '1' then
  return false
end
redis.call('HSET', TICKETS, 'shard', ARGV[3], 'format', ARGV[4])
if token ~= '' then
  redis.call('HSET', TICKETS, 'owner', token)
end
local made = redis.pcall('XGROUP', 'CREATE', PENDING, GROUP, '0', 'MKSTREAM')
if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return made
end
return false
