-- Records that the platform answers again, and adds permits for half-open replicas.
-- KEYS: answer. ARGV: ms for which it is kept, permits to add, the most that may be left.
local added = tonumber(redis.call('GET', KEYS[1]) or '') or 0
redis.call('SET', KEYS[1], math.min(math.max(added, 0) + ARGV[2], ARGV[3]), 'PX', ARGV[1])
