-- Returns a link that will do, as it is stored, or grants the lease: "lease|<stamp>|<token>", or says that
-- somebody else has it: "held|<stamp>". The stamp is the newest of the link there is, the token the one
-- that is kept; both are empty where there is none. One string, since Redis and its client take long over
-- anything else.
-- KEYS: link, token, lease. ARGV: holder, lease in ms, which link will do, a stamp.
-- A link is stored as "<stamp>,<stamp>,…|<value>": the requests it was made for, the newest first.
-- What has another form counts as absent, and so does what is larger than any that we store.
local function kept(key)
  local length = redis.call('STRLEN', key)
  return length > 0 and length <= 524288 and redis.call('GET', key)
end
local link = kept(KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|')
local newest = ''
if stamps then
  newest = string.sub(stamps, 1, 32)
  local will_do = ARGV[3] == 'any'
    or (ARGV[3] == 'own' and string.find(stamps, ARGV[4], 1, true))
    or (ARGV[3] == 'other' and newest ~= ARGV[4])
  if will_do then
    return link
  end
end
if redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 'lease|' .. newest .. '|' .. (kept(KEYS[2]) or '')
end
if redis.call('PTTL', KEYS[3]) < 0 then
  -- No lease is for ever. A restore may have lost its end, or somebody else have written it.
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
return 'held|' .. newest
