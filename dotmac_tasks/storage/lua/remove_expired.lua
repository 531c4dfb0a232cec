-- Remove index entries whose record is gone, and put right those whose record lives.
-- Uses: common
--
-- KEYS: index of expiry, then for each entry the record and the further indexes that name it
-- ARGV: how many keys each entry has, then for each entry its name in the index of expiry and in
--       the further ones
-- Returns: how many entries were removed

local width = tonumber(ARGV[1])
local now = now_ms()
local removed = 0
for i = 1, (#KEYS - 1) / width do
  local first = 2 + (i - 1) * width
  local name, id = ARGV[i * 2], ARGV[i * 2 + 1]
  local left = redis.call('PTTL', KEYS[first])
  if left == -2 then
    removed = removed + redis.call('ZREM', KEYS[1], name)
    for j = first + 1, first + width - 1 do redis.call('ZREM', KEYS[j], id) end
  else -- written anew since the index was asked, or the entry is damaged
    redis.call('ZADD', KEYS[1], left == -1 and '+inf' or int(now + left), name)
  end
end
return removed
