-- Counts open connections of addresses and users over all processes. Each process has a hash of its own counts, and one hash has the sums. A
-- process that has not been heard of for a while is taken out of the sums, at most 1,000 of them at a time.
--
-- KEYS  the processes with when they were last heard of; the sums; the counts of the one that calls
-- ARGV  its name; milliseconds after which a process counts as gone; what the keys of counts begin with; then address or user and count in turn
-- Answers 1 when it was not known, so that it has to say all its counts; then for each how many it has elsewhere.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answer = { redis.call('ZADD', KEYS[1], now, ARGV[1]) }

local function change(address, by)
  if redis.call('HINCRBY', KEYS[2], address, by) <= 0 then redis.call('HDEL', KEYS[2], address) end
end

local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2], 'LIMIT', 0, 1)[1]
if gone then
  local key = ARGV[3] .. gone
  local counts = redis.call('HSCAN', key, 0, 'COUNT', 1000)[2]
  for at = 1, #counts, 2 do
    change(counts[at], -counts[at + 1])
    redis.call('HDEL', key, counts[at])
  end
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', KEYS[1], gone) end
end

for at = 4, #ARGV, 2 do
  local address, count = ARGV[at], tonumber(ARGV[at + 1])
  local had = tonumber(redis.call('HGET', KEYS[3], address) or 0)
  if count ~= had then change(address, count - had) end
  if count > 0 then redis.call('HSET', KEYS[3], address, count) else redis.call('HDEL', KEYS[3], address) end
  answer[#answer + 1] = math.max(0, tonumber(redis.call('HGET', KEYS[2], address) or 0) - count)
end
return answer
