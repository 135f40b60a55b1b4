-- Forgets one link, if it is stored; then also the saved token, unless there is a lease.
-- KEYS: token, lease, links. ARGV: link id.
-- The id of a link is 11 hex digits of the time when its session was asked for, from the age stamp, and 8 of
-- its own stamp. A link of release 0.1 has no age stamp: its time is 0.
for i = 3, #KEYS do
  local stamps = string.match(redis.call('GETRANGE', KEYS[i], 0, 1023), '^(%x[%x,]*)|')
  if stamps then
    local of_newest = string.sub(stamps, 1, 16)
    local age = string.match(stamps, ',%x%x%x%x%x(' .. string.rep('%x', 11) .. ')' .. of_newest)
    if (age or '00000000000') .. string.sub(of_newest, 1, 8) == ARGV[1] then
      redis.call('DEL', KEYS[i])
      if redis.call('EXISTS', KEYS[2]) == 0 then
        redis.call('DEL', KEYS[1])
      end
      return 1
    end
  end
end
return 0
