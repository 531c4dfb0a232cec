-- Extend leases of claims and locks, each by itself.
-- Uses: common, record, expiry, write
--
-- KEYS: index, then the record or lock of each lease
-- ARGV: for each lease its kind (operation | lock), name, owner and duration (ms)
-- Returns: 1 for each lease that is held, 0 for each that is lost

local now = now_ms()

local function renew_operation(key, name, owner, duration)
  local record = read_record(key)
  if not record or record.s ~= 'in_progress' then return 0 end
  if record.o ~= owner or record.g == 'd' then return 0 end
  extend(key, KEYS[1], name, record, now + duration)
  return 1
end

local function renew_lock(key, _, owner, duration)
  if read_lock(key) ~= owner then return 0 end
  redis.call('PEXPIRE', key, duration)
  return 1
end

local answers = {}
for i = 2, #KEYS do
  local at = (i - 2) * 4
  local renew = ARGV[at + 1] == 'lock' and renew_lock or renew_operation
  local readable, held = pcall(renew, KEYS[i], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  if not readable then
    -- A record that cannot be read loses its own lease, nobody else's. Any other error is the
    -- server's (out of memory, read-only): no lease is lost by that, all are asked for again.
    local why = tostring(type(held) == 'table' and held.err or held)
    if not string.find(why, 'CORRUPT[', 1, true) and not string.find(why, 'WRONGTYPE', 1, true) then
      error(held, 0)
    end
    held = 0
  end
  answers[i - 1] = held
end
return answers
