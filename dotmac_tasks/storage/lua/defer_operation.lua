-- Turn a claim into one that anybody may settle within some time.
-- Uses: common, record, expiry, write
--
-- KEYS: index, fence counter, record
-- ARGV: key, owner, tenant, user, type, fingerprint, retention (ms), time to settle (ms), policy
-- Returns: done | lost

local now = now_ms()
local record = read_record(KEYS[3])
if record then
  if record.o ~= ARGV[2] then return 'lost' end
  if FINISHED[record.s] then return 'done' end
  record.l = int(now + ARGV[8])
  set_expiry(KEYS[3], KEYS[1], ARGV[1], record) -- needs no memory, see `extend`
else -- nobody holds the key, so it is written whole
  record = {
    v = '1', s = 'in_progress', t = ARGV[3], u = ARGV[4], n = ARGV[5], f = ARGV[6], o = ARGV[2],
    c = int(now), r = ARGV[7], a = ARGV[9], k = next_fence(KEYS[2]),
  }
end
record.g, record.l = 'd', int(now + ARGV[8])
write_open(KEYS[3], KEYS[1], ARGV[1], record)
return 'done'
