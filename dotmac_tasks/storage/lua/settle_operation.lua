-- Record an outcome without holding the claim.
-- Uses: common, record, expiry, write
--
-- KEYS: index, record
-- ARGV: key, status, payload, and the tenant where it is to be compared
-- Returns: done | finished | running | absent

local record = read_record(KEYS[2])
if not record or (ARGV[4] and record.t ~= ARGV[4]) then return 'absent' end
if FINISHED[record.s] then return 'finished' end
if record.s == 'in_progress' and record.g ~= 'd' and record.l - now_ms() > 0 then
  return 'running'
end
record.o, record.k, record.g = record.o or '', record.k or '0', 's'
write_finished(KEYS[2], KEYS[1], ARGV[1], record, ARGV[2], ARGV[3])
return 'done'
