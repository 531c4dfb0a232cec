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
  redis.call('HSET', key, 'l', record.l)
  set_expiry(key, index, name, record)
end

local function write_finished(key, index, name, record, status, payload)
  record.s, record.e = status, int(now_ms())
  local head = ''
  for field in string.gmatch('tunfokrceg', '.') do
    local value = record[field]
    head = head .. field .. #value .. ':' .. value
  end
  redis.call('DEL', key)
  redis.call('HSET', key, 'v', '1', 's', status, 'h', head, 'p', payload)
  set_expiry(key, index, name, record)
end
