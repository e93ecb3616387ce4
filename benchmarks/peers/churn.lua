-- What wrk sends to take a new chat's turn of ten deltas, on a connection of its own.
local number = 0
local run = tostring(os.time())

function request()
  number = number + 1
  local body = string.format(
    '{"id":"wrk-%s-%d","messages":[{"id":"u1","role":"user","parts":[{"type":"text","text":"/long 10"}]}]}',
    run, number)
  local headers = { ["content-type"] = "application/json", ["connection"] = "close" }
  return wrk.format("POST", nil, headers, body)
end
