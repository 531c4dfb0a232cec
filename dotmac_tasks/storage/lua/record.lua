-- Reads an idempotency record. It is a hash of v format, s status, p payload (finished only), and
-- t tenant, u user, n operation type, f fingerprint, o owner, k fencing token, r retention (ms),
-- c created, l lease end, e finished (all ms), a policy for an abandoned claim,
-- g how the claim goes: '' plainly, 't' taken over, 'd' deferred, 's' settled by somebody else.
-- A finished one holds all but v, s and p in h, one after the other as name, length, ':' and value:
-- with a long payload the hash is no compact one any more, and each field costs some 70 bytes.

local FINISHED, POLICY = {completed = true, failed = true}, {rerun = true, refuse = true}

local function unpack_head(record, head)
  local at = 1
  while true do
    local name, length, start = string.match(head, '^(%a)(%d+):()', at)
    if not name or start + length > #head + 1 then return end -- an overflow would never end
    at = start + length
    record[name] = string.sub(head, start, at - 1)
  end
end

local function is_whole(r)
  local claimed = r.o and r.g and is_int(r.k)
  if r.s == 'in_progress' then claimed = claimed and POLICY[r.a] and is_int(r.l) end
  if FINISHED[r.s] then claimed = claimed and r.p and is_int(r.e) end
  return (claimed or r.s == 'pending') and r.t and r.u and r.n and r.f and is_int(r.c)
    and is_int(r.r)
end

local function read_record(key, flat)
  flat = flat or redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  if record.v ~= '1' then corrupt(key, 'is not of format 1') end
  if record.h then unpack_head(record, record.h) end
  if record.s ~= 'pending' and record.s ~= 'in_progress' and not FINISHED[record.s] then
    corrupt(key, 'has no known status')
  end
  if not is_whole(record) then corrupt(key, 'lacks a field, or a number in one') end
  return record
end
