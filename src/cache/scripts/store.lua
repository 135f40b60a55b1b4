-- Stores a link and ends the lease, unless somebody else has taken over since: then it does nothing.
-- KEYS: link, token, lease. ARGV: holder, the newest stamp at the claim ('any': whatever is there
-- may be replaced), own stamp, life in ms, value.
local holder = redis.call('GET', KEYS[3])
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|') or ''
if holder ~= ARGV[1] then
  -- Without a lease there was nobody since, unless there is a link that we have not seen.
  local unseen = stamps ~= '' and ARGV[2] ~= 'any' and string.sub(stamps, 1, 32) ~= ARGV[2]
  if holder or unseen then
    return 0
  end
end
if tonumber(ARGV[4]) > 0 then
  -- Earlier requests stay named, up to sixteen: one that comes again finds a link newer than its own.
  local earlier = stamps ~= '' and ',' .. string.sub(stamps, 1, 15 * 33 - 1) or ''
  redis.call('SET', KEYS[1], ARGV[3] .. earlier .. '|' .. ARGV[5], 'PX', ARGV[4])
end
redis.call('DEL', KEYS[2], KEYS[3])
return 1
