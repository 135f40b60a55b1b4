-- Names one more request that a link was made for, unless it is named already.
-- KEYS: link. ARGV: stamp.
local link = redis.call('GET', KEYS[1])
local bar = link and string.find(link, '|', 1, true)
if not bar then
  return 0
end
local stamps = string.sub(link, 1, bar - 1)
if not string.find(stamps, ARGV[1], 1, true) then
  -- After the first stamp, by which the link itself is known; sixteen in all.
  stamps = string.sub(stamps, 1, 32) .. ',' .. ARGV[1] .. string.sub(stamps, 33, 15 * 33 - 1)
  redis.call('SET', KEYS[1], stamps .. string.sub(link, bar), 'PX', redis.call('PTTL', KEYS[1]))
end
return 1
