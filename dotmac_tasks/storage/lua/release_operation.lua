-- Give a claimed key back.
-- Uses: common, record
--
-- KEYS: index, record
-- ARGV: key, owner
-- Returns: done | lost

local record = read_record(KEYS[2])
if not record then return 'done' end
if record.s ~= 'in_progress' or record.o ~= ARGV[2] then return 'lost' end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 'done'
