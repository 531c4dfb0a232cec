-- Extend leases of claims and locks, each by itself.
-- Uses: common, record, expiry, write, damage
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
  -- A record that cannot be read loses its own lease, nobody else's. By any other error no lease is
  -- lost: all are asked for again.
  answers[i - 1] = attempt(renew, KEYS[i], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]) or 0
end
return answers
