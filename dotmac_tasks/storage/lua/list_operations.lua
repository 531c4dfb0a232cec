-- Look up one page of the index: what never expires first, then what expires last.
-- Uses: common
--
-- KEYS: index
-- ARGV: how many, then score and name of the entry behind which to start, where there is one
-- Returns: name, score, name, score, ...

local index, behind = KEYS[1], ARGV[3]

-- Byte by byte, as the index is sorted: Lua's own comparison goes by the locale.
local function is_less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- What expired is at the end of the index until it is purged.
local live = redis.call('ZCOUNT', index, '(' .. int(now_ms()), '+inf')
local start = 0
if behind then
  -- Entries of one score are sorted by name; any number of them may have this one, such as +inf.
  start = redis.call('ZCOUNT', index, '(' .. ARGV[2], '+inf')
  local stop = start + redis.call('ZCOUNT', index, ARGV[2], ARGV[2])
  while start < stop do
    local middle = math.floor((start + stop) / 2)
    local name = redis.call('ZREVRANGE', index, middle, middle)[1]
    if is_less(name, behind) then stop = middle else start = middle + 1 end
  end
end
local last = math.min(start + ARGV[1], live) - 1
if last < start then return {} end
return redis.call('ZREVRANGE', index, start, last, 'WITHSCORES')
