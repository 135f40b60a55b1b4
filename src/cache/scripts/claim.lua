-- Returns one of three strings:
--   the stored link, if it is fresh enough;
--   "lease|<stamp>|<mark>|<saved>", if the lease was granted;
--   "held|<stamp>", if another request holds the lease.
-- The stamp is the newest of the stored link, the mark is that of the last ending (forget.lua), the rest is the
-- saved token or, in the one-call flow, how many links requests have had (store.lua); each is empty where there is
-- none. One string is returned because Redis and its client are slower with any other reply.
-- KEYS: link, saved, lease, mark. ARGV: holder id, lease TTL in ms, freshness ('own', 'other'; absent: any link) and
-- its stamp.
-- A link is stored as "<stamp>,<age stamp>,<stamp>,…|<value>": the requests it was made for, newest first;
-- for the age stamp, see store.lua.
-- A value larger than any that is ever stored is not read whole. `pcall`, here and below, because a user that was set up
-- for release 0.1 may lack the permission.
local link = redis.pcall('GETRANGE', KEYS[1], '0', '524288')
-- The usual case for a new link: what follows would return the same in more time.
if link == '' and redis.pcall('EXISTS', KEYS[2], KEYS[4]) == 0
  and redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 'lease|||'
end
if type(link) ~= 'string' then
  link = redis.call('STRLEN', KEYS[1]) <= 524288 and redis.call('GET', KEYS[1]) or ''
end
-- A value of another form counts as missing, and so does one that is too large.
local stamps = #link <= 524288 and string.match(link, '^(%x[%x,]*)|')
local newest = ''
if stamps then
  newest = string.sub(stamps, 1, 32)
  local fresh = not ARGV[3]
    or (ARGV[3] == 'own' and string.find(stamps, ARGV[4], 1, true))
    or (ARGV[3] == 'other' and newest ~= ARGV[4])
  if fresh then
    return link
  end
end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= ARGV[1] then
  if redis.call('PTTL', KEYS[3]) < 0 then
    -- A lease without a TTL, from a restored dump or another writer, would block the user indefinitely.
    redis.call('PEXPIRE', KEYS[3], ARGV[2])
  end
  return 'held|' .. newest
end
-- If the claim is repeated because its answer was lost, the lease is granted again.
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
local mark = redis.call('GET', KEYS[4]) or ''
local saved = redis.call('STRLEN', KEYS[2]) <= 524288 and redis.call('GET', KEYS[2]) or ''
return 'lease|' .. newest .. '|' .. mark .. '|' .. saved
