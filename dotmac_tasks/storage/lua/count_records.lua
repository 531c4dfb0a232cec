-- Count what the indexes hold.
--
-- KEYS: indexes
-- Returns: how many entries each has

local answers = {}
for i = 1, #KEYS do answers[i] = redis.call('ZCARD', KEYS[i]) end
return answers
