-- Stands before every script: names of keys, the clock, and how a record ends.
--
-- KEYS     as `NAMES` in buffer/keys.py
-- ARGV[1]  prefix of the payload keys; a script's own arguments start at ARGV[2]
--
-- Rule for all scripts: the first write is one that a full server refuses (XADD, HSET, ZADD,
-- HINCRBY). Redis refuses only before the first write, so a refused script has changed nothing.
local TICKETS, VERSIONS, LEASES, HOLDERS, OPEN = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local PENDING, ENTRIES, ATTEMPTS = KEYS[6], KEYS[7], KEYS[8]
local LOG, LIVE, COUNTS, QUARANTINE = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local GROUP = 'scorers'

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

local function quarantine(id, reason)
  redis.call('XADD', LOG, '*', 'k', 'f', 'id', id, 'reason', reason)
  redis.call('XADD', QUARANTINE, 'MAXLEN', '~', 10000, '*', 'id', id, 'reason', reason)
  redis.call('HINCRBY', COUNTS, 'failed', 1)
  finish(id)
  redis.call('UNLINK', payload(id))
end
