-- Writes an idempotency record that `read_record` gave or that is new.

local function write_open(key, index, name, record)
  local flat = {}
  for field, value in pairs(record) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  redis.call('HSET', key, unpack(flat))
  set_expiry(key, index, name, record)
end

local function extend(key, index, name, record, lease)
  record.l = int(lease)
  -- First what needs no memory: after that a full Redis lets a script go on, and a running claim
  -- does not get lost because others fill the memory.
  set_expiry(key, index, name, record)
  redis.call('HSET', key, 'l', record.l)
end

local function write_finished(key, index, name, r, status, payload)
  r.s, r.e = status, int(now_ms())
  -- Tenant and fingerprint come first: by them the quick claim knows a replay.
  local head = table.concat({
    't', #r.t, ':', r.t, 'f', #r.f, ':', r.f, 'u', #r.u, ':', r.u, 'n', #r.n, ':', r.n,
    'o', #r.o, ':', r.o, 'k', #r.k, ':', r.k, 'r', #r.r, ':', r.r, 'c', #r.c, ':', r.c,
    'e', #r.e, ':', r.e, 'g', #r.g, ':', r.g,
  })
  redis.call('DEL', key)
  redis.call('HSET', key, 'v', '1', 's', status, 'h', head, 'p', payload)
  set_expiry(key, index, name, r)
end
