-- How an idempotency record is reported:
-- {tenant, user, type, status, fingerprint, created (ms), expiry (ms, 0 for never),
--  fencing token, lease end (ms, 0 unless in progress), payload, size of the payload,
--  1 if it is deferred, 1 if it is abandoned}

local function describe(record, size)
  local running = record.s == 'in_progress'
  return {
    record.t, record.u, record.n, record.s, record.f, tonumber(record.c),
    tonumber(expiry_of(record) or 0), tonumber(record.k or 0), tonumber(record.l or 0),
    record.p or '', size or #(record.p or ''),
    running and record.g == 'd' and 1 or 0, running and record.l - now_ms() <= 0 and 1 or 0,
  }
end
