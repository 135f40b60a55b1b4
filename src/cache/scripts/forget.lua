-- Forgets the links of a user and workflow whose sessions were asked for before a verification ended, and
-- leaves a mark for links that are stored later. Without a lease, deletes the saved token, too.
-- Returns 'forgotten', 'kept' if a link is newer, or 'unknown' without a link.
-- KEYS: mark, token, lease, links. ARGV: when it ended, in seconds since 1970, TTL of the mark in ms, the life
-- of a link in ms.
-- The mark is "<when it was set, in µs>:<the last second whose sessions have ended>". The first number
-- distinguishes marks.
local time = redis.call('TIME')
local ended = tonumber(ARGV[1])
local marked = string.match(redis.call('GET', KEYS[1]) or '', '%d+$')
local last = math.max(ended, tonumber(marked or '0'))
local mark = time[1] .. string.format('%06d', time[2]) .. ':' .. string.format('%.0f', last)
redis.call('SET', KEYS[1], mark, 'PX', ARGV[2])
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[2])
end
local outcome = 'unknown'
for i = 4, #KEYS do
  -- Stamps take at most 16 times 33 bytes.
  local stamps = string.match(redis.call('GETRANGE', KEYS[i], 0, 1023), '^(%x[%x,]*)|')
  if stamps then
    local age = string.match(stamps, ',%x(' .. string.rep('%x', 15) .. ')' .. string.sub(stamps, 1, 16))
    -- A link of release 0.1 has no age stamp: its TTL shows its age.
    local asked_ms = age and tonumber(age, 16)
      or time[1] * 1000 + time[2] / 1000 + redis.call('PTTL', KEYS[i]) - ARGV[3]
    if math.floor(asked_ms / 1000) <= ended then
      redis.call('DEL', KEYS[i])
      outcome = 'forgotten'
    elseif outcome == 'unknown' then
      outcome = 'kept'
    end
  end
end
return outcome
