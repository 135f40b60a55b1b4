-- Ends the lease, if it is still ours.
-- KEYS: token, lease. ARGV: holder id, '1' to delete the saved token, too.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '1' then
  redis.call('DEL', KEYS[1])
end
return redis.call('DEL', KEYS[2])
