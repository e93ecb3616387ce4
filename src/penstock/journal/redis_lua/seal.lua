-- End a running turn, or suspend it.
-- ARGV[2] epoch  ARGV[3] offset of the first entry  ARGV[4] the state to be
-- ARGV[5] ended_at, and ARGV[6] the time in milliseconds at which the ended turn is to go; '' and '' for a suspended one
-- ARGV[7] milliseconds from a chat's last beginning to its own going  ARGV[8] ended turns that a chat keeps
-- ARGV[9] "LENGTH-OF-ID ID " of the message to be the chat's last, or ''  ARGV[10] its JSON
-- ARGV[11...] entries
-- Returns {1, bytes of all entries} if this call did it, or one just like it; {0} if not; {-1} if there would be a hole.

local held = redis.call('HMGET', turn, 'epoch', 'state', 'entries', 'bytes')
if held[1] ~= ARGV[2] then return {0} end
local offset, last = tonumber(ARGV[3]), tonumber(held[3])
local finish = offset + #ARGV - 10

if held[2] ~= 'running' then
  if held[2] ~= ARGV[4] or finish ~= last then return {0} end
  local tail = redis.call('XREVRANGE', entries, '+', '-', 'COUNT', #ARGV - 10)
  for i, entry in ipairs(tail) do
    if entry[2][2] ~= ARGV[#ARGV + 1 - i] then return {0} end
  end
  return {1, tonumber(held[4])}
end
if offset > last then return {-1} end
if finish <= last then return {0} end

local bytes = add(ARGV[2], offset, 11)
redis.call('HSET', turn, 'state', ARGV[4], 'ended_at', ARGV[5], 'lease_until', '')
if ARGV[9] ~= '' then
  for _, message in ipairs(redis.call('LRANGE', messages, 0, -1)) do
    if string.sub(message, 1, #ARGV[9]) == ARGV[9] then redis.call('LREM', messages, 0, message) end
  end
  redis.call('RPUSH', messages, ARGV[9] .. ARGV[10])
end

-- A chat has one turn more than it keeps at most, so this is short.
local ended = {}
for _, of in ipairs(redis.call('LRANGE', turns, 0, -1)) do
  local state = redis.call('HGET', chat .. ':turn:' .. of, 'state')
  if not state then
    redis.call('LREM', turns, 0, of)
  elseif not open(state) then
    ended[#ended + 1] = of
  end
end
for i = 1, #ended - tonumber(ARGV[8]) do
  redis.call('DEL', chat .. ':turn:' .. ended[i], chat .. ':entries:' .. ended[i])
  redis.call('LREM', turns, 0, ended[i])
end

tell()
local chat_goes = tonumber(redis.call('HGET', chat, 'began_ms')) + tonumber(ARGV[7])
local turn_goes = math.min(chat_goes, tonumber(ARGV[6]) or chat_goes)
for _, key in ipairs({chat, messages, turns}) do
  redis.call('PEXPIREAT', key, string.format('%.0f', chat_goes))
end
for _, key in ipairs({turn, entries}) do
  redis.call('PEXPIREAT', key, string.format('%.0f', turn_goes))
end
return {1, bytes}
