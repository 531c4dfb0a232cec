-- Look up what the indexes say has expired.
-- Uses: common
--
-- KEYS: indexes of expiry
-- ARGV: how many names to return at most, of each
-- Returns: for each index how many have expired, and the first names

local now = int(now_ms())
local answers = {}
for i = 1, #KEYS do
  local names = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now, 'LIMIT', 0, ARGV[1])
  answers[i] = {redis.call('ZCOUNT', KEYS[i], '-inf', now), names}
end
return answers
