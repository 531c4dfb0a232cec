-- Goes on where a record cannot be read.

-- Return what `act` returns; nil and the reason where a record that it reads is damaged. Any other
-- error is the server's (out of memory, read-only) and ends the script.
local function attempt(act, ...)
  local readable, found = pcall(act, ...)
  if readable then return found end
  local why = tostring(type(found) == 'table' and found.err or found)
  if not string.find(why, 'CORRUPT[', 1, true) and not string.find(why, 'WRONGTYPE', 1, true) then
    error(found, 0)
  end
  return nil, why
end
