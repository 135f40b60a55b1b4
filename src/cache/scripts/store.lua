-- Stores a link and ends the lease, unless another request has taken over since the claim: then it
-- changes nothing and returns 0.
-- KEYS: link, token, lease. ARGV: holder id, newest stamp at the claim ('any': replace any link), own
-- stamp, TTL in ms, value.
local holder = redis.call('GET', KEYS[3])
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|') or ''
if holder ~= ARGV[1] then
  -- Our lease has expired. Another request has taken over if it holds the lease now, or has stored a
  -- link that we have not seen.
  local unseen = stamps ~= '' and ARGV[2] ~= 'any' and string.sub(stamps, 1, 32) ~= ARGV[2]
  if holder or unseen then
    return 0
  end
end
if tonumber(ARGV[4]) > 0 then
  -- Keep up to 15 earlier stamps after our own: an earlier request that is redelivered finds a link
  -- newer than its own.
  local earlier = stamps ~= '' and ',' .. string.sub(stamps, 1, 15 * 33 - 1) or ''
  redis.call('SET', KEYS[1], ARGV[3] .. earlier .. '|' .. ARGV[5], 'PX', ARGV[4])
end
redis.call('DEL', KEYS[2], KEYS[3])
return 1
