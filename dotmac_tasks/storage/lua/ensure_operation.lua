-- Create a record pending if it is absent; report it as it is then.
-- Uses: common, record, expiry, write, describe
--
-- KEYS: index, record
-- ARGV: key, tenant, user, type, fingerprint, retention (ms)
-- Returns: as find_operation

local record = read_record(KEYS[2])
if not record then
  record = {
    v = '1', s = 'pending', t = ARGV[2], u = ARGV[3], n = ARGV[4], f = ARGV[5],
    c = int(now_ms()), r = ARGV[6],
  }
  write_open(KEYS[2], KEYS[1], ARGV[1], record)
end
return describe(record)
