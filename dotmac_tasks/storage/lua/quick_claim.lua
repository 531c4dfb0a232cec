-- The two most frequent claims, before what all others need is even defined: of a new key, and of
-- a key whose outcome is recorded. Takes and returns what claim_operation.lua does, which follows
-- and has the last word on whatever looks unusual here.

local flat = redis.call('HGETALL', KEYS[3])
if #flat == 0 then
  if KEYS[4] then -- new keys are counted, in a window that begins with the first of them
    local used = tonumber(redis.call('GET', KEYS[4]) or 0) or 0
    local left = redis.call('PTTL', KEYS[4])
    if left < 1 then used, left = 0, ARGV[12] end
    if used >= tonumber(ARGV[11]) then return {'over_quota', 0, '', left} end
    redis.call('SET', KEYS[4], string.format('%.0f', used + 1), 'PX', left)
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local created, lease = string.format('%.0f', now), string.format('%.0f', now + ARGV[8])
  local fence = redis.call('INCR', KEYS[2])
  redis.call('HSET', KEYS[3], 'v', '1', 's', 'in_progress', 't', ARGV[3], 'u', ARGV[4],
    'n', ARGV[5], 'f', ARGV[6], 'o', ARGV[2], 'k', string.format('%.0f', fence), 'r', ARGV[7],
    'c', created, 'l', lease, 'a', ARGV[9], 'g', '')
  local expiry = '+inf'
  if ARGV[9] ~= 'refuse' then
    expiry = string.format('%.0f', lease + ARGV[7])
    redis.call('PEXPIREAT', KEYS[3], expiry)
  end
  redis.call('ZADD', KEYS[1], expiry, ARGV[1])
  return {'claimed', fence, '', 0}
end

local found = {}
for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
if found.v == '1' and (found.s == 'completed' or found.s == 'failed') and found.h and found.p then
  -- The head begins with the tenant and the fingerprint, see write.lua.
  local tenant, fingerprint = ARGV[3], ARGV[6]
  local start = 't' .. #tenant .. ':' .. tenant .. 'f' .. #fingerprint .. ':' .. fingerprint
  if string.sub(found.h, 1, #start) == start then return {'finished', 0, found.p, 0} end
end
