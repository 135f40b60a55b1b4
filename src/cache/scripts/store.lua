-- Stores a link and ends the lease, unless somebody else has taken over since: then it does nothing.
-- KEYS: link, token, lease. ARGV: holder, the newest stamp at the claim, own stamp, life in ms, value.
local holder = redis.call('GET', KEYS[3])
local link = redis.call('GET', KEYS[1])
local stamps = ''
if link then
  stamps = string.sub(link, 1, (string.find(link, '|', 1, true) or 1) - 1)
end
if holder ~= ARGV[1] and (holder or string.sub(stamps, 1, 32) ~= ARGV[2]) then
  return 0
end
if tonumber(ARGV[4]) > 0 then
  -- Earlier requests stay named, up to sixteen: one that comes again finds a link newer than its own.
  local earlier = stamps ~= '' and ',' .. string.sub(stamps, 1, 15 * 33 - 1) or ''
  redis.call('SET', KEYS[1], ARGV[3] .. earlier .. '|' .. ARGV[5], 'PX', ARGV[4])
end
redis.call('DEL', KEYS[2], KEYS[3])
return 1
