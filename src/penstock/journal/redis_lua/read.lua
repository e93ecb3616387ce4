-- Read entries of a turn.
-- ARGV[2] offset  ARGV[3] how many at most
-- Returns a list of them, empty for a turn that is not there.

local epoch = '1'
for of, start in string.gmatch(redis.call('HGET', turn, 'starts') or '', '(%d+):(%d+)') do
  if tonumber(start) <= tonumber(ARGV[2]) then epoch = of end
end
local found = redis.call('XRANGE', entries, epoch .. '-' .. (tonumber(ARGV[2]) + 1), '+', 'COUNT', ARGV[3])
for i, entry in ipairs(found) do found[i] = entry[2][2] end
return found
