-- Adds a request to those that a link was made for, unless it is one of them already.
-- KEYS: link. ARGV: stamp. For the form of a link, see store.lua.
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|')
if not stamps then
  return 0
end
if not string.find(stamps, ARGV[1], 1, true) then
  local value = string.sub(link, #stamps + 1)
  -- The first stamp identifies the link, and the age stamp stays behind it. At most 16 others are kept.
  local of_newest = string.sub(stamps, 1, 16)
  local head = string.match(stamps, '^' .. string.rep('%x', 32) .. ',' .. string.rep('%x', 16) .. of_newest)
  head = head or string.sub(stamps, 1, 32)
  local others = string.sub(stamps, #head + 1, #head + 14 * 33)
  redis.call('SET', KEYS[1], head .. ',' .. ARGV[1] .. others .. value, 'PX', redis.call('PTTL', KEYS[1]))
end
return 1
