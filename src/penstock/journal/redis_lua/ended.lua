-- Note turns that have ended, so that the oldest can go when all of them are too much. Not of one chat: it has a slot of
-- its own, and it is a note, not the truth. Without `common.lua`.
--
-- KEYS[1]  sorted set: "BYTES TURN CHAT" of each ended turn, by the time of its end
-- KEYS[2]  the sum of BYTES
-- ARGV[1] what ended before this time is gone  ARGV[2] bytes that may be there  ARGV[3...] time, member; and so on
-- Returns the members that are too much, the oldest first, a hundred at most.

local function size(member)
  return tonumber(string.match(member, '^%d+'))
end

for i = 3, #ARGV, 2 do
  if redis.call('ZADD', KEYS[1], 'NX', ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('INCRBY', KEYS[2], size(ARGV[i + 1]))
  end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1], 'LIMIT', 0, 1000)) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('DECRBY', KEYS[2], size(member))
end
local excess = tonumber(redis.call('GET', KEYS[2]) or 0) - tonumber(ARGV[2])
local due = {}
if excess > 0 then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, 99)) do
    if excess <= 0 then break end
    due[#due + 1] = member
    excess = excess - size(member)
  end
end
return due
