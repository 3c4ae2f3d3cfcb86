-- Counts what windows of limits on events have used over all processes. Each window is a hash: of each process how much, and the sum. It
-- expires with the window.
--
-- KEYS  the windows, all in one slot
-- ARGV  the name of the process that calls; then for each window what that has used in all, how many milliseconds are left of it, and how
--       many a window lasts
-- Answers for each window what others have used, or -1 when its key holds something else, and how many milliseconds are left of it for all.
local answer = {}

-- What a field counts. What is no count of ours counts as nothing, so that it harms nobody but itself, and is written over.
local function count_in(text)
  return text and #text < 16 and text:match('^%d+$') and tonumber(text) or 0
end

for at, key in ipairs(KEYS) do
  local used, left, whole = tonumber(ARGV[3 * at - 1]), tonumber(ARGV[3 * at]), tonumber(ARGV[3 * at + 1])
  local found = redis.pcall('HMGET', key, ARGV[1], 'sum')
  if not found.err then
    local sum = math.max(used, count_in(found[2]) + used - count_in(found[1]))
    redis.call('HSET', key, ARGV[1], used, 'sum', sum)
    local expires = redis.call('PTTL', key)
    -- Longer than a window is nothing that we have said.
    if expires < 0 or expires > whole then
      redis.call('PEXPIRE', key, left)
      expires = left
    end
    answer[2 * at - 1], answer[2 * at] = sum - used, expires
  elseif found.err:find('WRONGTYPE', 1, true) then
    answer[2 * at - 1], answer[2 * at] = -1, left
  else
    return found
  end
end
return answer
