-- Forget turns that were noted by `ended.lua` and removed since. The same KEYS. ARGV[1...] members. Returns 1.

for i = 1, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('DECRBY', KEYS[2], string.match(ARGV[i], '^%d+'))
  end
end
return 1
