-- Give a lock back.
-- Uses: common
--
-- KEYS: lock
-- ARGV: owner
-- Returns: 1 where this owner does not hold it afterwards, 0 where somebody else does

local owner = read_lock(KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
if owner then redis.call('DEL', KEYS[1]) end
return 1
