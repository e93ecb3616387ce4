-- Set a suspended turn running again.
-- ARGV[2] epoch  ARGV[3] entries  ARGV[4] request_key  ARGV[5] lease_until  ARGV[6...] the chat's messages
-- Returns 1, or 0 if it isn't suspended, or not as the caller read it.

local held = record(id)
if not held or held[4] ~= 'suspended' or held[2] ~= ARGV[2] or held[5] ~= ARGV[3] then return 0 end
redis.call('HSET', turn, 'state', 'running', 'request_key', ARGV[4], 'lease_until', ARGV[5])
set_messages(6)
persist()
tell()
return 1
