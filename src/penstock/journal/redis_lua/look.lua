-- Read a turn's record and entries.
-- ARGV[2] offset  ARGV[3] how many entries at most
-- Returns {the record, a list of entries}, or nil if there is no such turn.

local held = record(id)
if not held then return false end
local offset, found = tonumber(ARGV[2]), {}
if offset < tonumber(held[5]) then
  local epoch = '1'
  for of, start in string.gmatch(redis.call('HGET', turn, 'starts'), '(%d+):(%d+)') do
    if tonumber(start) <= offset then epoch = of end
  end
  found = redis.call('XRANGE', entries, epoch .. '-' .. (offset + 1), '+', 'COUNT', ARGV[3])
  for i, entry in ipairs(found) do found[i] = entry[2][2] end
end
return {held, found}
