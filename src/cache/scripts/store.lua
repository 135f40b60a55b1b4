-- Stores a link and ends the lease, unless another request has taken over since the claim: then it
-- changes no link and returns 0. Returns 1 again if it is repeated, as long as the link is there.
-- KEYS: link, saved, lease. ARGV: holder id, newest stamp at the claim ('any': replace any older link), own
-- stamp, age stamp, TTL in ms, value, links, their TTL in ms.
-- In the two-call flow, links is 0, and a saved token ends with the lease. In the one-call flow, it says how many
-- links the request has had, this one included. It is saved as "<stamp>=<n>,…", newest first, and outlives the
-- link: a link that is gone has ended or was forgotten.
-- A link is stored as "<stamp>,<age stamp>,<stamp>,…|<value>". The age stamp has the form of a stamp, which
-- a release that does not know it passes over: 16 hex digits of the time when the session was asked for, and
-- 16 of the link's own stamp, without which it belongs to an earlier link.
local holder = redis.call('GET', KEYS[3])
local link = redis.call('GET', KEYS[1])
local stamps = link and string.match(link, '^(%x[%x,]*)|') or ''
local newest = string.sub(stamps, 1, 32)
local of_newest = string.sub(newest, 1, 16)
local age = stamps ~= '' and string.match(stamps, ',(' .. string.rep('%x', 16) .. of_newest .. ')') or ''
local function end_lease()
  if ARGV[7] == '0' then
    redis.call('DEL', KEYS[2], KEYS[3])
  else
    redis.call('DEL', KEYS[3])
  end
end
local function count_links()
  local counts, links, others = redis.call('GET', KEYS[2]) or '', tonumber(ARGV[7]), 0
  local saved = ''
  for stamp, n in string.gmatch(counts, '(%x+)=(%d+)') do
    if stamp == ARGV[3] then
      links = math.max(links, tonumber(n))
    elseif others < 7 then
      others = others + 1
      saved = saved .. ',' .. stamp .. '=' .. n
    end
  end
  redis.call('SET', KEYS[2], ARGV[3] .. '=' .. string.format('%d', links) .. saved, 'PX', ARGV[8])
end
local is_repeated = newest == ARGV[3] and age == ARGV[4]
-- Whether the claim has not seen the present link.
local is_unseen = stamps ~= '' and newest ~= ARGV[2]
local is_newer = is_unseen and string.sub(age, 1, 16) > string.sub(ARGV[4], 1, 16)
if holder ~= ARGV[1] then
  if is_repeated then
    return 1
  end
  -- Our lease has expired. Another request has taken over if it holds the lease now, or has stored a
  -- link that we have not seen.
  if holder or is_newer or (is_unseen and ARGV[2] ~= 'any') then
    return 0
  end
elseif is_newer then
  end_lease()
  return 0
end
if tonumber(ARGV[5]) > 0 and not is_repeated then
  -- Keep up to 15 earlier stamps after our own: an earlier request that is redelivered finds a link
  -- newer than its own.
  if age ~= '' then
    stamps = string.gsub(stamps, ',' .. age, '', 1)
  end
  local earlier = stamps ~= '' and ',' .. string.sub(stamps, 1, 15 * 33 - 1) or ''
  redis.call('SET', KEYS[1], ARGV[3] .. ',' .. ARGV[4] .. earlier .. '|' .. ARGV[6], 'PX', ARGV[5])
end
if ARGV[7] ~= '0' then
  count_links()
end
end_lease()
return 1
