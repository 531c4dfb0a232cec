-- Report records without their payloads, which may be large.
-- Uses: common, record, expiry, damage, describe
--
-- KEYS: records
-- Returns: for each what describe.lua says with an empty payload; {} if it is absent, and {reason}
--          if it cannot be read

local NAMES = {'v', 's', 'h', 't', 'u', 'n', 'f', 'o', 'k', 'r', 'c', 'l', 'e', 'a', 'g'}

local function summarise(key)
  local size = redis.call('HSTRLEN', key, 'p')
  local flat = {}
  for i, value in ipairs(redis.call('HMGET', key, unpack(NAMES))) do
    if value then
      flat[#flat + 1] = NAMES[i]
      flat[#flat + 1] = value
    end
  end
  if #flat == 0 and redis.call('PTTL', key) ~= -2 then corrupt(key, 'is not of format 1') end
  -- An empty payload is one, too.
  if size > 0 or redis.call('HMGET', key, 'p')[1] then
    flat[#flat + 1] = 'p'
    flat[#flat + 1] = ''
  end
  local record = read_record(key, flat)
  return record and describe(record, size) or {}
end

local answers = {}
for i = 1, #KEYS do
  local answer, damage = attempt(summarise, KEYS[i])
  answers[i] = answer or {damage}
end
return answers
