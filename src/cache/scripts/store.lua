-- Stores a link and ends the lease, unless another request has taken over since the claim or the link was
-- forgotten meanwhile: then it changes no link and returns 0. Returns 1 again if it is repeated, as long as
-- the link is there.
-- KEYS: link, saved, lease, mark. ARGV: holder id, newest stamp at the claim ('any': replace any older link), own
-- stamp, age stamp, TTL in ms, value, links, their TTL in ms, mark at the claim ('' where that is not known),
-- 'late' if the link may have been handed out already.
-- In the two-call flow, links is 0, and a saved token ends with the lease. In the one-call flow, it says how many
-- links the request has had, this one included. It is saved as "<stamp>=<n>,…", newest first, and outlives the
-- link: a link that is gone has ended or was forgotten.
-- A link is stored as "<stamp>,<age stamp>,<stamp>,…|<value>". The age stamp has the form of a stamp, which
-- a release that does not know it passes over: a 1 once the session's index entry is written, before that a 0
-- (indexed.lua), 15 hex digits of the time when the session was asked for, and 16 of the link's own stamp,
-- without which it belongs to an earlier link.
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
local is_repeated = newest == ARGV[3] and string.sub(age, 2) == string.sub(ARGV[4], 2)
-- Whether the claim has not seen the present link.
local is_unseen = stamps ~= '' and newest ~= ARGV[2]
local is_newer = is_unseen and string.sub(age, 2, 16) > string.sub(ARGV[4], 2, 16)
-- Whether an ending since the claim concerns the session. One that is being made under a live lease is not
-- affected.
local is_ended = false
if not is_repeated and (holder ~= ARGV[1] or ARGV[10] == 'late') then
  local mark = redis.call('GET', KEYS[4])
  local asked_ms = tonumber(string.sub(ARGV[4], 2, 16), 16)
  is_ended = mark and mark ~= ARGV[9] and math.floor(asked_ms / 1000) <= tonumber(string.match(mark, '%d+$'))
end
if is_ended and ARGV[7] ~= '0' then
  -- The request has had this link, though it is not stored.
  count_links()
end
if holder ~= ARGV[1] then
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
