-- Renew the lease of a running turn.
-- ARGV[2] epoch  ARGV[3] lease_until
-- Returns 1, or 0 if it is not the caller's any more.

local held = redis.call('HMGET', turn, 'epoch', 'state')
if held[1] ~= ARGV[2] or held[2] ~= 'running' then return 0 end
redis.call('HSET', turn, 'lease_until', ARGV[3])
return 1
