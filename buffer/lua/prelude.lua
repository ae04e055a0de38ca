-- Stands before every script: names of keys, the clock, and how a record ends.
--
-- KEYS     as `NAMES` in buffer/keys.py
-- ARGV[1]  prefix of the payload keys; a script's own arguments start at ARGV[2]
-- Before it stand GROUP, MOST_QUARANTINED and PUT_SHARE, as `_constants` in buffer/redis_link.py
--
-- Rule for all scripts: the first write is one that a full server refuses (XADD, HSET, ZADD,
-- HINCRBY). Redis refuses only before the first write, so a refused script has changed nothing.
local TICKETS, VERSIONS, LEASES, HOLDERS, OPEN = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local PENDING, ENTRIES, ATTEMPTS, LOG = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local LIVE, PLACES, PRIORITIES, GENERATIONS = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local SIZES, COUNTS, QUARANTINE, REASONS = KEYS[14], KEYS[15], KEYS[16], KEYS[17]

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function payload(id)
  return ARGV[1] .. id
end

-- 123 of '0000000123.004', as text.
local function ticket_of(id)
  return string.format('%d', tonumber(string.sub(id, 1, 10)))
end

-- 123004 of '0000000123.004': sorts like the ids.
local function order_of(id)
  return string.sub(id, 1, 10) .. string.sub(id, 12)
end

-- Whether a claim is still its owner's: whoever takes it over keeps the entry.
local function is_held(entry, owner)
  return redis.call('XPENDING', PENDING, GROUP, entry, entry, 1, owner)[1] ~= nil
end

local function dequeue(entry)
  redis.call('XACK', PENDING, GROUP, entry)
  redis.call('XDEL', PENDING, entry)
end

-- A record becomes terminal. Only for a record in ENTRIES, and after its log entry is written.
local function finish(id)
  dequeue(redis.call('HGET', ENTRIES, id))
  redis.call('HDEL', ENTRIES, id)
  redis.call('HDEL', ATTEMPTS, id)
  local ticket = ticket_of(id)
  if redis.call('HINCRBY', OPEN, ticket, -1) <= 0 then
    redis.call('HDEL', OPEN, ticket)
  end
end

local function drop_payload(id)
  redis.call('UNLINK', payload(id))
  redis.call('HDEL', SIZES, id)
end

local function quarantine(id, reason)
  redis.call('XADD', LOG, '*', 'k', 'f', 'id', id, 'reason', reason)
  redis.call('ZADD', QUARANTINE, string.format('%d', now_ms()), id)
  redis.call('HSET', REASONS, id, reason)
  redis.call('HINCRBY', COUNTS, 'failed', 1)
  finish(id)
  for _ = MOST_QUARANTINED + 1, redis.call('ZCARD', QUARANTINE) do
    local oldest = redis.call('ZPOPMIN', QUARANTINE)[1]
    redis.call('HDEL', REASONS, oldest)
    drop_payload(oldest)
  end
end

-- The latents of live records go. One log entry tells of all of them.
local function evict(ids)
  if #ids == 0 then
    return
  end
  redis.call('XADD', LOG, '*', 'k', 'e', 'ids', table.concat(ids, ' '))
  redis.call('HINCRBY', COUNTS, 'evicted', #ids)
  for _, id in ipairs(ids) do
    redis.call('HINCRBY', COUNTS, 'live_bytes', -tonumber(redis.call('HGET', SIZES, id) or '0'))
    redis.call('ZREM', LIVE, id)
    redis.call('ZREM', PRIORITIES, id)
    redis.call('HDEL', PLACES, id)
    redis.call('HDEL', GENERATIONS, id)
    drop_payload(id)
  end
end

-- Live records above a capacity in records and, unless it is 0, in bytes: by ticket for 'oldest', else by
-- priority and then by ticket. At most so many, where a number is given.
local function above(most_records, most_bytes, remover, at_most)
  local order = remover == 'oldest' and LIVE or PRIORITIES
  local records = redis.call('ZCARD', LIVE)
  local bytes = tonumber(redis.call('HGET', COUNTS, 'live_bytes') or '0')
  local found = {}
  while (records > most_records or (most_bytes > 0 and bytes > most_bytes and records > 0))
    and #found < (at_most or records + 1) do
    local id = redis.call('ZRANGE', order, #found, #found)[1]
    bytes = bytes - tonumber(redis.call('HGET', SIZES, id) or '0')
    records = records - 1
    found[#found + 1] = id
  end
  return found
end
