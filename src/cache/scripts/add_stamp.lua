-- Adds a request to those that a link was made for, unless it is one of them already.
-- KEYS: link. ARGV: stamp.
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|')
if not stamps then
  return 0
end
if not string.find(stamps, ARGV[1], 1, true) then
  local value = string.sub(link, #stamps + 1)
  -- Inserted second, because the first stamp identifies the link. At most 16 are kept.
  stamps = string.sub(stamps, 1, 32) .. ',' .. ARGV[1] .. string.sub(stamps, 33, 15 * 33 - 1)
  redis.call('SET', KEYS[1], stamps .. value, 'PX', redis.call('PTTL', KEYS[1]))
end
return 1
