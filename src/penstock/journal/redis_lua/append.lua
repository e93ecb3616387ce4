-- Add entries to a running turn. What is there already is left as it is.
-- ARGV[2] epoch  ARGV[3] offset of the first entry  ARGV[4...] entries
-- Returns 1; 0 if the turn isn't running, or not in this epoch; -1 if there would be a hole.

local held = redis.call('HMGET', turn, 'epoch', 'state', 'entries')
if held[1] ~= ARGV[2] or held[2] ~= 'running' then return 0 end
local offset, last = tonumber(ARGV[3]), tonumber(held[3])
if offset > last then return -1 end
if offset + #ARGV - 3 > last then
  add(ARGV[2], offset, 4)
  tell()
end
return 1
