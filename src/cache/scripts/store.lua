-- Stores a link and ends the lease, unless another request has taken over since the claim or the link was
-- forgotten meanwhile: then it changes no link and returns 0. Returns 1 again if it is repeated, as long as
-- the link is there; 2 if the session's index entry is written with the link.
-- KEYS: link, saved, lease, mark; session, if its key is on the same server: then the index entry is written, too,
-- unless the session has one already, since it may have ended (index.lua). ARGV: holder id, link, TTL in ms; then,
-- where one of them differs from its default: newest stamp at the claim ('': no link; 'any': replace any older link),
-- mark at the claim ('': unknown or none), 'late' if the link may have been handed out already, links (0), their TTL in
-- ms; last, with a session key, the index entry.
-- In the two-call flow, links is 0, and a saved token ends with the lease. In the one-call flow, it says how many
-- links the request has had, this one included. It is saved as "<stamp>=<n>,…", newest first, and outlives the
-- link: a link that is gone has ended or was forgotten.
-- A link is stored as "<stamp>,<age stamp>,<stamp>,…|<value>". The age stamp has the form of a stamp, which
-- a release that does not know it passes over: a 1 once the session's index entry is written, before that a 0
-- (indexed.lua), 15 hex digits of the time when the session was asked for, and 16 of the link's own stamp,
-- without which it belongs to an earlier link. In ARGV, it has no other stamps yet, and a 1 if there is a session key.
local holder = redis.call('GET', KEYS[3])
local is_ours = holder == ARGV[1]
local entry = KEYS[5] and ARGV[#ARGV]
local has_defaults = #ARGV == (entry and 4 or 3)
-- The usual case: what follows would do the same in more time.
if is_ours and has_defaults and ARGV[3] ~= '0'
  and redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3], 'NX') then
  local stored = 1
  if entry then
    if redis.call('SET', KEYS[5], entry, 'PX', ARGV[3], 'NX') then
      stored = 2
    else
      local new = string.sub(ARGV[2], 1, 33) .. '0' .. string.sub(ARGV[2], 35)
      redis.call('SET', KEYS[1], new, 'PX', ARGV[3])
    end
  end
  redis.call('DEL', KEYS[2], KEYS[3])
  return stored
end
local link = redis.call('GET', KEYS[1])
local claimed_newest, claimed_mark, is_late, links = '', '', false, '0'
if not has_defaults then
  claimed_newest, claimed_mark, is_late, links = ARGV[4], ARGV[5], ARGV[6] == 'late', ARGV[7]
end
local function count_links()
  local own = string.sub(ARGV[2], 1, 32)
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
local asked = string.sub(ARGV[2], 35, 49)
if stamps ~= '' then
  newest = string.sub(stamps, 1, 32)
  age = string.match(stamps, ',(' .. string.rep('%x', 16) .. string.sub(newest, 1, 16) .. ')') or ''
  is_repeated = newest == string.sub(ARGV[2], 1, 32) and string.sub(age, 2) == string.sub(ARGV[2], 35, 65)
  is_unseen = newest ~= claimed_newest
  is_newer = is_unseen and string.sub(age, 2, 16) > asked
end
-- Whether an ending since the claim concerns the session. One that is being made under a live lease is not
-- affected.
local is_ended = false
if not is_repeated and (not is_ours or is_late) then
  local mark = redis.call('GET', KEYS[4])
  is_ended = mark and mark ~= claimed_mark
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
  if holder or is_newer or is_ended or (is_unseen and claimed_newest ~= 'any') then
    return 0
  end
elseif is_newer or is_ended then
  end_lease()
  return 0
end
local stored = 1
if ARGV[3] ~= '0' and not is_repeated then
  link = ARGV[2]
  if entry then
    if redis.call('SET', KEYS[5], entry, 'PX', ARGV[3], 'NX') then
      stored = 2
    else
      link = string.sub(link, 1, 33) .. '0' .. string.sub(link, 35)
    end
  end
  if stamps ~= '' then
    -- Keep up to 15 earlier stamps after our own: an earlier request that is redelivered finds a link
    -- newer than its own.
    if age ~= '' then
      stamps = string.gsub(stamps, ',' .. age, '', 1)
    end
    link = string.sub(link, 1, 65) .. ',' .. string.sub(stamps, 1, 15 * 33 - 1) .. string.sub(link, 66)
  end
  redis.call('SET', KEYS[1], link, 'PX', ARGV[3])
end
if links ~= '0' then
  count_links()
end
end_lease()
return stored
