-- When an idempotency record vanishes.

-- The instant in ms; nil for a claim that stays until it is resolved.
local function expiry_of(record)
  if record.s == 'in_progress' and record.a == 'refuse' then return nil end
  return int((record.e or record.l or record.c) + record.r)
end

-- Let it expire, and note in the index when.
local function set_expiry(key, index, name, record)
  local at = expiry_of(record)
  if at then redis.call('PEXPIREAT', key, at) else redis.call('PERSIST', key) end
  redis.call('ZADD', index, at or '+inf', name)
end
