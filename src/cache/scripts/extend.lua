-- Extends the lease, if it is still ours. KEYS: lease. ARGV: holder id, lease TTL in ms.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
