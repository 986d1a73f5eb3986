-- Load for the demo: each request posts a body that no other request has, and each acknowledged
-- record is written down as "seq thread counter" before the next request is sent.
--
-- wrk must run as many threads as connections: then the request that a response answers is the one
-- that its thread sent last.

local threads = 0

function setup(thread)
   thread:set("id", threads)
   threads = threads + 1
end

function init(args)
   size = tonumber(args[2])
   counter = 0
   log = assert(io.open(args[1] .. "/acknowledged." .. id, "w"))
   log:setvbuf("no")
end

function request()
   counter = counter + 1
   local tag = string.format("%d:%d;", id, counter)
   local body = string.rep(tag, math.ceil(size / #tag)):sub(1, size)
   return wrk.format("POST", "/append", nil, body)
end

function response(status, headers, body)
   if status == 200 then
      local seq = assert(body:match('"seq":%s*(%d+)'), "an acknowledgement without a seq")
      log:write(string.format("%s %d %d\n", seq, id, counter))
   end
end
