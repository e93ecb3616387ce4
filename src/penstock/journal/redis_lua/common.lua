-- What each script of one chat begins with.
--
-- KEYS[1]  the chat's key, PREFIX{CHAT}. Every other name begins with it, so that a script stays in one slot:
--   KEYS[1]              hash     began_ms of the newest turn, and its id in newest
--   KEYS[1]:messages     list     the chat's messages, each as "LENGTH-OF-ID ID JSON"
--   KEYS[1]:turns        list     ids of the turns that there are, in the order in which they began
--   KEYS[1]:turn:ID      hash     a turn's record; also bytes, of its entries, and starts: "EPOCH:OFFSET" of each owner
--   KEYS[1]:entries:ID   stream   a turn's entries in field e. The entry at OFFSET has the id EPOCH-(OFFSET+1)
--   KEYS[1]:news:ID      channel  something was written to the turn
-- ARGV[1]  the turn's id.
--
-- Times are decimal seconds as text; '' stands for none.

local chat, id = KEYS[1], ARGV[1]
local messages, turns = chat .. ':messages', chat .. ':turns'
local turn, entries = chat .. ':turn:' .. id, chat .. ':entries:' .. id

-- The record of a turn as a list: its id and seven fields. False if there is none.
local function record(of)
  local found = redis.call('HMGET', chat .. ':turn:' .. of,
    'epoch', 'request_key', 'state', 'entries', 'started_at', 'ended_at', 'lease_until')
  if not found[1] then return false end
  table.insert(found, 1, of)
  return found
end

-- The record of the chat's newest turn, or false.
local function newest()
  local of = redis.call('HGET', chat, 'newest')
  return of and record(of)
end

local function open(state)
  return state == 'running' or state == 'suspended'
end

-- Make ARGV[first] and what follows the chat's messages. They are mostly those that it has and one more.
local function set_messages(first)
  local held = redis.call('LRANGE', messages, 0, -1)
  local same = 0
  while same < #held and held[same + 1] == ARGV[first + same] do same = same + 1 end
  if same == 0 then
    redis.call('DEL', messages)
  elseif same < #held then
    redis.call('LTRIM', messages, 0, same - 1)
  end
  for i = first + same, #ARGV do redis.call('RPUSH', messages, ARGV[i]) end
end

-- Add what is new of ARGV[first] and what follows, which are the entries from offset on. There must be no hole.
local function add(epoch, offset, first)
  local held = tonumber(redis.call('HGET', turn, 'entries'))
  local bytes = 0
  for i = first + held - offset, #ARGV do
    held = held + 1
    redis.call('XADD', entries, epoch .. '-' .. held, 'e', ARGV[i])
    bytes = bytes + #ARGV[i]
  end
  redis.call('HSET', turn, 'entries', held)
  return redis.call('HINCRBY', turn, 'bytes', bytes)
end

-- Nothing of a chat that is being answered goes by itself.
local function persist()
  for _, key in ipairs({chat, messages, turns, turn, entries}) do redis.call('PERSIST', key) end
end

local function tell()
  redis.call('PUBLISH', chat .. ':news:' .. id, '')
end
