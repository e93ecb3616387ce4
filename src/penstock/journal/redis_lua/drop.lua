-- Remove a turn that has ended, with all its entries.

local state = redis.call('HGET', turn, 'state')
if state and not open(state) then
  redis.call('DEL', turn, entries)
  redis.call('LREM', turns, 0, id)
end
return 1
