-- Stores a link and ends the lease, unless another request has taken over since the claim or the link was
-- forgotten meanwhile: then it changes no link and returns 0. Returns 1 again if it is repeated, as long as
-- the link is there.
-- KEYS: link, saved, lease, mark. ARGV: holder id, newest stamp at the claim ('any': replace any older link), link,
-- TTL in ms; then, where one of them differs from its default: mark at the claim ('': unknown or none), 'late' if the
-- link may have been handed out already, links (0), their TTL in ms.
-- In the two-call flow, links is 0, and a saved token ends with the lease. In the one-call flow, it says how many
-- links the request has had, this one included. It is saved as "<stamp>=<n>,…", newest first, and outlives the
-- link: a link that is gone has ended or was forgotten.
-- A link is stored as "<stamp>,<age stamp>,<stamp>,…|<value>". The age stamp has the form of a stamp, which
-- a release that does not know it passes over: a 1 once the session's index entry is written, before that a 0
-- (indexed.lua), 15 hex digits of the time when the session was asked for, and 16 of the link's own stamp,
-- without which it belongs to an earlier link. In ARGV, it has no other stamps yet, and a 0.
local holder = redis.call('GET', KEYS[3])
local link = redis.call('GET', KEYS[1])
local is_ours = holder == ARGV[1]
if is_ours and not link and not ARGV[5] and ARGV[4] ~= '0' then
  -- The usual case: what follows would do the same in more time.
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  redis.call('DEL', KEYS[2], KEYS[3])
  return 1
end
local is_late, links = ARGV[6] == 'late', ARGV[7] or '0'
local function count_links()
  local own = string.sub(ARGV[3], 1, 32)
  local counts, most, others = redis.call('GET', KEYS[2]) or '', tonumber(links), 0
  local saved = ''
  for stamp, n in string.gmatch(counts, '(%x+)=(%d+)') do
    if stamp == own then
      most = math.max(most, tonumber(n))
    elseif others < 7 then
      others = others + 1
      saved = saved .. ',' .. stamp .. '=' .. n
    end
  end
  redis.call('SET', KEYS[2], own .. '=' .. string.format('%d', most) .. saved, 'PX', ARGV[8])
end
local function end_lease()
  if links == '0' then
    redis.call('DEL', KEYS[2], KEYS[3])
  else
    redis.call('DEL', KEYS[3])
  end
end
-- Of the present link: its stamps, the newest of them, its own age stamp.
local stamps, newest, age = link and string.match(link, '^(%x[%x,]*)|') or '', '', ''
-- Whether the link was stored before; whether the claim has not seen the present link, and whether that is newer.
local is_repeated, is_unseen, is_newer = false, false, false
local asked = string.sub(ARGV[3], 35, 49)
if stamps ~= '' then
  newest = string.sub(stamps, 1, 32)
  age = string.match(stamps, ',(' .. string.rep('%x', 16) .. string.sub(newest, 1, 16) .. ')') or ''
  is_repeated = newest == string.sub(ARGV[3], 1, 32) and string.sub(age, 2) == string.sub(ARGV[3], 35, 65)
  is_unseen = newest ~= ARGV[2]
  is_newer = is_unseen and string.sub(age, 2, 16) > asked
end
-- Whether an ending since the claim concerns the session. One that is being made under a live lease is not
-- affected.
local is_ended = false
if not is_repeated and (not is_ours or is_late) then
  local mark = redis.call('GET', KEYS[4])
  is_ended = mark and mark ~= (ARGV[5] or '')
    and math.floor(tonumber(asked, 16) / 1000) <= tonumber(string.match(mark, '%d+$'))
end
if is_ended and links ~= '0' then
  -- The request has had this link, though it is not stored.
  count_links()
end
if not is_ours then
  if is_repeated then
    return 1
  end
  -- Our lease has expired. Another request has taken over if it holds the lease now, or has stored a
  -- link that we have not seen.
  if holder or is_newer or is_ended or (is_unseen and ARGV[2] ~= 'any') then
    return 0
  end
elseif is_newer or is_ended then
  end_lease()
  return 0
end
if ARGV[4] ~= '0' and not is_repeated then
  link = ARGV[3]
  if stamps ~= '' then
    -- Keep up to 15 earlier stamps after our own: an earlier request that is redelivered finds a link
    -- newer than its own.
    if age ~= '' then
      stamps = string.gsub(stamps, ',' .. age, '', 1)
    end
    link = string.sub(link, 1, 65) .. ',' .. string.sub(stamps, 1, 15 * 33 - 1) .. string.sub(link, 66)
  end
  redis.call('SET', KEYS[1], link, 'PX', ARGV[4])
end
if links ~= '0' then
  count_links()
end
end_lease()
return 1
