-- Report a record.
-- Uses: common, record, expiry, describe
--
-- KEYS: record
-- Returns: nil if it is absent, else what describe.lua says

local record = read_record(KEYS[1])
return record and describe(record)
