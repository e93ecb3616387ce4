-- Become the owner of a turn that is running or suspended, in the next epoch.
-- ARGV[2...8] the record as the caller read it: epoch, request_key, state, entries, started_at, ended_at, lease_until
-- ARGV[9] the new lease_until
-- Returns 1, or 0 if the record is another.

local held = record(id)
if not held or not open(held[4]) then return 0 end
for i = 2, 8 do
  if held[i] ~= ARGV[i] then return 0 end
end
local epoch = tonumber(held[2]) + 1
local starts = redis.call('HGET', turn, 'starts') .. ' ' .. epoch .. ':' .. held[5]
redis.call('HSET', turn, 'epoch', epoch, 'state', 'running', 'lease_until', ARGV[9], 'starts', starts)
persist()
tell()
return 1
