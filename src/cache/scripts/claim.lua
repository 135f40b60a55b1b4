-- Returns a link that will do, or grants the lease with the stored token, or says who is first.
-- KEYS: link, token, lease. ARGV: holder, lease in ms, which link will do, a stamp.
-- A link is stored as "<stamp>,<stamp>,…|<value>": the requests it was made for, the newest first.
local link = redis.call('GET', KEYS[1])
local newest = ''
if link then
  local bar = string.find(link, '|', 1, true) or 0
  local stamps = string.sub(link, 1, bar - 1)
  newest = string.sub(stamps, 1, 32)
  local will_do = ARGV[3] == 'any'
    or (ARGV[3] == 'own' and string.find(stamps, ARGV[4], 1, true))
    or (ARGV[3] == 'other' and newest ~= ARGV[4])
  if will_do then
    return {'link', newest, string.sub(link, bar + 1)}
  end
end
if redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {'lease', newest, redis.call('GET', KEYS[2]) or ''}
end
return {'held', newest, ''}
