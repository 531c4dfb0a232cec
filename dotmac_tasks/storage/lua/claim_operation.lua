-- Claim a key, take over a lease that is over, or report what is there.
-- Uses: quick_claim, common, record, expiry, write
--
-- KEYS: index, fence counter, record; with a quota its counter
-- ARGV: key, owner, tenant, user, type, fingerprint, retention (ms), lease (ms), policy,
--       fencing token of an abandoned claim to take over whatever its policy;
--       with a quota its limit and its window (ms)
-- Returns: {outcome, fencing token, payload, ms that the lease or the window has left}

local key, owner, fingerprint = ARGV[1], ARGV[2], ARGV[6]
local now = now_ms()
local record = read_record(KEYS[3]) -- there is one, or the quick claim had made it

local function answer(outcome, left)
  return {outcome, tonumber(record.k), record.p or '', left or 0}
end

local taken_over = false
if record.t ~= ARGV[3] then return {'foreign'} end
if record.f ~= '' and record.f ~= fingerprint then return {'mismatch'} end
if FINISHED[record.s] then return answer('finished') end
if record.s == 'in_progress' then
  if record.o == owner then -- sent again: as the first time
    if record.g ~= 'd' then extend(KEYS[3], KEYS[1], key, record, now + ARGV[8]) end
    return answer(record.g == 't' and 'taken_over' or 'claimed')
  end
  local left = record.l - now
  if left > 0 then return answer('in_progress', left) end
  if record.a == 'refuse' and record.k ~= ARGV[10] then return answer('unresolved') end
  taken_over = true
end
record.s, record.o, record.f, record.g = 'in_progress', owner, fingerprint, taken_over and 't' or ''
record.r, record.l, record.a = ARGV[7], int(now + ARGV[8]), ARGV[9]
record.k = next_fence(KEYS[2], record.k)
write_open(KEYS[3], KEYS[1], key, record)
return answer(taken_over and 'taken_over' or 'claimed')
