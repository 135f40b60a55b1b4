-- Keeps a token for whoever comes after a crash, if the lease is still ours.
-- KEYS: token, lease. ARGV: holder, life in ms, value.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return 1
