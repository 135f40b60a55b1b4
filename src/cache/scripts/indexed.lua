-- Notes in a stored link that its session's index entry is written. For the age stamp, see store.lua; for the
-- link id, forget_link.lua.
-- KEYS: link. ARGV: link id.
local head = redis.call('GETRANGE', KEYS[1], 0, 64)
local is_own = string.sub(head, 50, 65) == string.sub(head, 1, 16)
if is_own and string.sub(head, 39, 57) == ARGV[1] then
  redis.call('SETRANGE', KEYS[1], 33, '1')
  return 1
end
return 0
