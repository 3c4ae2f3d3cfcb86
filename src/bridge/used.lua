-- Counts what windows of limits on events have used over all processes. Each window is a hash: of each process how much, and the sum. It
-- expires with the window.
--
-- KEYS  the windows, all in one slot
-- ARGV  the name of the process that calls; then for each window what that has used in all, and how many milliseconds are left of it
-- Answers for each window what others have used, and how many milliseconds are left of it for all.
local answer = {}
for at, key in ipairs(KEYS) do
  local used, left = tonumber(ARGV[2 * at]), tonumber(ARGV[2 * at + 1])
  local had = tonumber(redis.call('HGET', key, ARGV[1]) or 0)
  local sum = redis.call('HINCRBY', key, 'sum', used - had)
  redis.call('HSET', key, ARGV[1], used)
  local expires = redis.call('PTTL', key)
  if expires < 0 then
    redis.call('PEXPIRE', key, left)
    expires = left
  end
  answer[2 * at - 1] = math.max(0, sum - used)
  answer[2 * at] = expires
end
return answer
