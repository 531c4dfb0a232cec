-- Take a lock, or hold it anew where the same owner has it.
-- Uses: common
--
-- KEYS: fence counter, lock (a string: owner, ':', fencing token)
-- ARGV: owner, time to live (ms)
-- Returns: the fencing token; 0 while somebody else holds it

local owner, fence = read_lock(KEYS[2])
if owner == ARGV[1] then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return fence
end
if owner then return 0 end
fence = next_fence(KEYS[1])
redis.call('SET', KEYS[2], ARGV[1] .. ':' .. fence, 'PX', ARGV[2])
return tonumber(fence)
