-- Grants a permit for a call to a platform that is down, at most one in each interval of all replicas together.
-- KEYS: permit, answer. ARGV: ms between two permits, ms for which an answer is kept, `open`, `half-open` or nothing:
-- only look, and how many permits ahead of its time this one may be granted, of at most how many.
-- Returns whether a permit is granted; the ms until it may be used, or else until the next one; and the ms that the
-- answer has left.
local interval, kept = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = redis.call('PTTL', KEYS[2])
-- One without an end, or with a later one, is not ours.
if left < 0 or left > kept then left = 0 end
if ARGV[3] == '' then return {0, 0, left} end
if ARGV[3] == 'half-open' and left > 0 then
  local added = tonumber(redis.call('GET', KEYS[2])) or 0
  if added > 0 then
    redis.call('SET', KEYS[2], added - 1, 'PX', left)
    return {1, 0, left}
  end
end
local wait = redis.call('PTTL', KEYS[1])
if wait < 0 or wait > (ARGV[5] + 1) * interval then wait = 0 end
if wait > ARGV[4] * interval then return {0, wait, left} end
redis.call('SET', KEYS[1], '1', 'PX', wait + interval)
return {1, wait, left}
