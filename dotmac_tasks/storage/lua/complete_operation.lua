-- Record the outcome of a claim.
-- Uses: common, record, expiry, write
--
-- KEYS: index, fence counter, record
-- ARGV: key, owner, tenant, user, type, fingerprint, retention (ms), fencing token, status, payload
-- Returns: done | lost

local owner, fence = ARGV[2], tonumber(ARGV[8])
local record = read_record(KEYS[3])
if record then
  if record.o ~= owner then return 'lost' end
  if FINISHED[record.s] then return record.g == 's' and 'lost' or 'done' end -- sent again
else -- nobody holds the key, so it is written whole
  record = {
    t = ARGV[3], u = ARGV[4], n = ARGV[5], f = ARGV[6], o = owner, k = ARGV[8], g = '',
    c = int(now_ms()),
  }
  if fence > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], ARGV[8]) end
end
record.r = ARGV[7]
write_finished(KEYS[3], KEYS[1], ARGV[1], record, ARGV[9], ARGV[10])
return 'done'
