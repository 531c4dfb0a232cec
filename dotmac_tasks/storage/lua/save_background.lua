-- Write a background operation if its revision is the expected one.
-- Uses: common, background
--
-- KEYS: record, index of expiry, index of the tenant, then the tenant's index of each status
-- ARGV: id, tenant, data, expected revision, request id, retention (ms, '' for none), status,
--       then the name of each status
-- Returns: what background.lua says; nil if somebody else wrote first

local record = read_background(KEYS[1])
if record and record.t ~= ARGV[2] then return false end
if record and record.i == ARGV[5] then return describe_background(record) end -- sent again
local revision = tonumber(ARGV[4])
if tonumber(record and record.n or 0) ~= revision then return false end

local now = now_ms()
if not record then
  local newest = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  local order = math.max(now * 1000, (tonumber(newest[2]) or 0) + 1)
  record = {v = '1', t = ARGV[2], c = int(now), q = int(order)}
end
record.d, record.i, record.s = ARGV[3], ARGV[5], ARGV[7]
record.n, record.m = int(revision + 1), int(now)
record.x = ARGV[6] ~= '' and int(now + ARGV[6]) or ''
for field, value in pairs(record) do redis.call('HSET', KEYS[1], field, value) end
if record.x == '' then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIREAT', KEYS[1], record.x)
end
redis.call('ZADD', KEYS[2], record.x == '' and '+inf' or record.x, ARGV[1] .. ':' .. ARGV[2])
redis.call('ZADD', KEYS[3], record.q, ARGV[1])
for i = 4, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
for i = 4, #KEYS do
  if ARGV[i + 4] == record.s then redis.call('ZADD', KEYS[i], record.q, ARGV[1]) end
end
return describe_background(record)
