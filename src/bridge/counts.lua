-- Counts open connections of addresses and users over all processes. Each process has a hash of its own counts, and one hash has the sums. A
-- process that has not been heard of for a while is taken out of the sums, at most 1,000 of them at a time.
--
-- KEYS  the processes with when they were last heard of; the sums; the counts of the one that calls
-- ARGV  its name; milliseconds after which a process counts as gone; what the keys of counts begin with; then address or user and count in turn
-- Answers 1 when it was not known, so that it has to say all its counts; then for each how many it has elsewhere.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answer = { redis.call('ZADD', KEYS[1], now, ARGV[1]) }

-- What a field counts. What is no count of ours counts as nothing, so that it harms nobody but itself, and is written over.
local function count_in(key, address)
  local text = redis.call('HGET', key, address)
  return text and #text < 10 and text:match('^%d+$') and tonumber(text) or 0
end

local function write(key, address, count)
  if count > 0 then redis.call('HSET', key, address, count) else redis.call('HDEL', key, address) end
end

local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2], 'LIMIT', 0, 1)[1]
if gone then
  local key = ARGV[3] .. gone
  local found = redis.pcall('HSCAN', key, 0, 'COUNT', 1000)
  -- A key that is no hash is none of ours, and stays.
  if found.err and not found.err:find('WRONGTYPE', 1, true) then return found end
  local counts = found[2] or {}
  for at = 1, #counts, 2 do
    local address = counts[at]
    write(KEYS[2], address, count_in(KEYS[2], address) - count_in(key, address))
    redis.call('HDEL', key, address)
  end
  if found.err or redis.call('EXISTS', key) == 0 then redis.call('ZREM', KEYS[1], gone) end
end

for at = 4, #ARGV, 2 do
  local address, count = ARGV[at], tonumber(ARGV[at + 1])
  local had, before = count_in(KEYS[3], address), count_in(KEYS[2], address)
  -- The sum is never less than what one of its parts has.
  local sum = math.max(count, before + count - had)
  if sum ~= before then write(KEYS[2], address, sum) end
  if count ~= had then write(KEYS[3], address, count) end
  answer[#answer + 1] = sum - count
end
return answer
