-- Ends the lease, if it is still ours; drops the token too, if it turned out to be no good.
-- KEYS: token, lease. ARGV: holder, '1' to drop the token.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '1' then
  redis.call('DEL', KEYS[1])
end
return redis.call('DEL', KEYS[2])
