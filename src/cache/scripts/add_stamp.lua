-- Names one more request that a link was made for, unless it is named already.
-- KEYS: link. ARGV: stamp.
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|')
if not stamps then
  return 0
end
if not string.find(stamps, ARGV[1], 1, true) then
  local value = string.sub(link, #stamps + 1)
  -- After the first stamp, by which the link itself is known; sixteen in all.
  stamps = string.sub(stamps, 1, 32) .. ',' .. ARGV[1] .. string.sub(stamps, 33, 15 * 33 - 1)
  redis.call('SET', KEYS[1], stamps .. value, 'PX', redis.call('PTTL', KEYS[1]))
end
return 1
