-- Takes calls out of the bucket that all replicas share; a negative number puts calls back.
-- KEYS: bucket. ARGV: µs in which the bucket gains a call, capacity, calls wanted.
-- The one stored number is the time, in µs, at which the bucket will be full again.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local every, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1]) or '') or now
-- A time outside these bounds was stored under another limit or by another clock.
full = math.min(math.max(full, now), now + most * every)
local free = math.floor((now + most * every - full) / every)
local granted = math.min(wanted, free)
full = math.max(full + granted * every, now)
if full > now then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
else
  redis.call('DEL', KEYS[1])
end
return {granted, math.max(full + every - most * every - now, 0)}
