-- Writes a session's index entry, which says where its link is stored. Returns 1 if the session has ended.
-- KEYS: session. ARGV: entry, TTL in ms.
-- An entry is "i", 32 bytes of the hash of user and workflow, and 10 of the link id. Once the session has
-- ended, the "i" is a "!"; what follows may be missing (the session had no entry) or be the hash alone.
local known = redis.call('GET', KEYS[1])
if known and string.sub(known, 1, 1) == '!' then
  local hash = string.sub(known, 2, 33)
  if hash ~= '' and hash ~= string.sub(ARGV[1], 2, 33) then
    -- The session of another user and workflow has ended.
    return 0
  end
  -- The ending, if it is delivered again, must find the link.
  redis.call('SET', KEYS[1], '!' .. string.sub(ARGV[1], 2), 'KEEPTTL')
  return 1
end
if known ~= ARGV[1] and tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 0
