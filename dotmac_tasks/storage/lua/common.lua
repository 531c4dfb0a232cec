-- What verbs of every kind share.
-- A record that cannot be read ends the script with CORRUPT[key why], before anything is written.

local function corrupt(key, why)
  error('CORRUPT[' .. key .. ' ' .. why .. ']', 0)
end

-- Whole numbers as text: Lua's own way would turn a large one into 1e+15.
local function int(number)
  return string.format('%.0f', number)
end

-- Whether a field is such a number; tonumber alone takes 'nan', '1e999' and '0x1' as well.
local function is_int(text)
  return text and #text < 17 and string.find(text, '^%d+$')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Raise the counter behind all fencing tokens, above `stored` too, and return it.
local function next_fence(counter, stored)
  local fence = redis.call('INCR', counter)
  if stored and fence <= tonumber(stored) then
    fence = tonumber(stored) + 1
    redis.call('SET', counter, int(fence))
  end
  return int(fence)
end

-- Return who holds a lock and the fencing token; nothing for a free one.
local function read_lock(key)
  local held = redis.call('GET', key)
  if not held then return nil end
  local owner, fence = string.match(held, '^(.*):(%d+)$')
  if not owner then corrupt(key, 'holds no owner and fencing token') end
  return owner, tonumber(fence)
end
