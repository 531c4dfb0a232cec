-- Report background operations.
-- Uses: common, background
--
-- KEYS: records
-- Returns: for each what background.lua says, {} if it is absent

local answers = {}
for i = 1, #KEYS do
  local record = read_background(KEYS[i])
  answers[i] = record and describe_background(record) or {}
end
return answers
