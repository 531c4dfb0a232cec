-- Give a key back without holding its claim.
-- Uses: common, record, damage
--
-- KEYS: index, record
-- ARGV: key, whether finished ones may go, whether unreadable ones may go (0 or 1),
--       fencing token ('' for any), and the tenant where it is to be compared
-- Returns: done | finished | running | absent | changed

local function discard()
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 'done'
end

local record, damage
if ARGV[3] == '1' and not ARGV[5] then
  record, damage = attempt(read_record, KEYS[2])
  if damage then return discard() end
else
  record = read_record(KEYS[2])
end
if not record or (ARGV[5] and record.t ~= ARGV[5]) then return 'absent' end
if record.s == 'in_progress' and record.l - now_ms() > 0 then return 'running' end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= tonumber(record.k or 0) then return 'changed' end
if FINISHED[record.s] and ARGV[2] ~= '1' then return 'finished' end
return discard()
