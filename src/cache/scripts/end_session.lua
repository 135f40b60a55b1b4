-- Marks a session as ended. Returns its index entry without the first byte; '' if there is none, or if it
-- belongs to another user and workflow, whose session this ending does not concern.
-- KEYS: session. ARGV: TTL in ms, 32 bytes of the hash of user and workflow ('': any). For the entry, see
-- index.lua.
local known = redis.call('GET', KEYS[1]) or ''
local entry = string.sub(known, 2)
if #entry > 32 then
  if ARGV[2] ~= '' and ARGV[2] ~= string.sub(entry, 1, 32) then
    return ''
  end
elseif known == '' or entry == ARGV[2] then
  entry = ARGV[2]
else
  -- It has ended for two users, or for any.
  entry = ''
end
redis.call('SET', KEYS[1], '!' .. entry, 'PX', ARGV[1])
return #entry > 32 and entry or ''
