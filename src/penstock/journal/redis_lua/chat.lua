-- Read a chat. ARGV[1] is not used.
-- Returns {its messages, the record of its newest turn or nil}, or nil if there is no such chat.

if redis.call('EXISTS', chat) == 0 then return false end
return {redis.call('LRANGE', messages, 0, -1), newest()}
