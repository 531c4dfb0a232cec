-- Reads a background operation. It is a hash of v format, t tenant, s status, n revision, d data,
-- c created, m changed, x expiry (all ms; x is '' for never), i id of the last request,
-- q its place in the order of creation (microseconds, no two alike for one tenant).

local function read_background(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  if record.v ~= '1' then corrupt(key, 'is not of format 1') end
  for name in string.gmatch('tsncmxiqd', '.') do
    if not record[name] then corrupt(key, 'lacks the field ' .. name) end
  end
  for name in string.gmatch('ncmq', '.') do
    if not is_int(record[name]) then corrupt(key, 'has no number in ' .. name) end
  end
  return record
end

-- {tenant, status, revision, created (ms), changed (ms), expiry (ms, 0 for never), data}
local function describe_background(record)
  return {
    record.t, record.s, tonumber(record.n), tonumber(record.c), tonumber(record.m),
    tonumber(record.x) or 0, record.d,
  }
end
