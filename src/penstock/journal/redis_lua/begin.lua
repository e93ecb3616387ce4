-- Begin a turn, in epoch 1.
-- ARGV[2] request_key  ARGV[3] started_at  ARGV[4] the same in whole milliseconds  ARGV[5] lease_until
-- ARGV[6...] the chat's messages
-- Returns 1; 0 if the chat has a turn of this id; or the record of the turn that has not ended.

local running = newest()
if running and open(running[4]) then return running end
if redis.call('EXISTS', turn) == 1 then return 0 end
redis.call('HSET', turn, 'epoch', 1, 'request_key', ARGV[2], 'state', 'running', 'entries', 0, 'started_at', ARGV[3],
  'ended_at', '', 'lease_until', ARGV[5], 'bytes', 0, 'starts', '1:0')
redis.call('HSET', chat, 'began_ms', ARGV[4], 'newest', id)
redis.call('RPUSH', turns, id)
set_messages(6)
persist()
return 1
