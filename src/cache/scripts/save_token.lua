-- Saves a token for the successor of a crashed worker, if the lease is still ours.
-- KEYS: token, lease. ARGV: holder id, TTL in ms, value.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return 1
