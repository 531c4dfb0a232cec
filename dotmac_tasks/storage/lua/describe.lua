-- How an idempotency record is reported:
-- {tenant, user, type, status, fingerprint, created (ms), expiry (ms, 0 for never),
--  fencing token, lease end (ms, 0 unless in progress), payload}

local function describe(record)
  return {
    record.t, record.u, record.n, record.s, record.f, tonumber(record.c),
    tonumber(expiry_of(record) or 0), tonumber(record.k or 0), tonumber(record.l or 0),
    record.p or '',
  }
end
