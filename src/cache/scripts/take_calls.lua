-- Takes calls out of the bucket that all replicas share; a negative number puts calls back.
-- KEYS: bucket, line. ARGV: µs in which the bucket gains a call, capacity, calls wanted, calls of a turn, µs for which
-- a turn is kept, the time and the calls of the caller's turn (0 and 0: none). All times are in µs by Redis' clock.
-- The bucket is the time at which it will be full again. A caller that gets less than it wants joins the line: its turn
-- is the time at which the bucket will have its calls. The line is the time of the first call that no turn has.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local every, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local batch, kept = tonumber(ARGV[4]), tonumber(ARGV[5])
local at, calls = tonumber(ARGV[6]), tonumber(ARGV[7])

-- A later time was stored under another limit or by another clock.
local full = math.min(tonumber(redis.call('GET', KEYS[1]) or '') or 0, now + most * every)
-- The bucket gains its first call that is not taken at `first`, and one `every` µs from then on.
local first = full - (most - 1) * every
local function gained(from, to) return math.max(math.floor((to - from) / every) + 1, 0) end

local is_due = at <= now and at >= now - kept
local granted, line, unused = wanted, first, 0
local stored, is_asked_by_0_1 = line, false
if wanted > 0 then
  -- No line is longer than ten minutes or the limit's time, unless another clock made it.
  local longest = now + math.max(600000000, 2 * most * every)
  stored = math.min(tonumber(redis.call('GET', KEYS[2]) or '') or 0, longest)
  line = math.max(stored, first)
  local due = is_due and calls or 0
  -- Calls of turns that were not used in time, and calls behind the line, are for any replica.
  unused = math.min(gained(first, now - kept), math.ceil((line - first) / every))
  granted = math.min(wanted, gained(first, now), most, due + unused + gained(line, now))
  line = line + math.max(granted - due - unused, 0) * every
  -- Release 0.1 stores the time whenever it asks, and does not keep it for longer.
  if granted < wanted and full > now then
    is_asked_by_0_1 = redis.call('PTTL', KEYS[1]) * 1000 < full - now + kept / 2
  end
end
if granted ~= 0 then
  full = math.max(full, now) + granted * every
  first = full - (most - 1) * every
  if full > now then
    -- Kept for longer, so that the time shows since when the bucket has been full.
    local life = math.ceil((full - now + kept) / 1000)
    redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', life)
  else
    redis.call('DEL', KEYS[1])
  end
end

local wait = 0
if granted < wanted then
  if at > now and at < line then
    -- Too early: the turn stays.
  elseif is_due and granted == 0 and first <= at + math.min(kept, 8 * every) then
    -- A replica of release 0.1 took the call, or the bucket is a little late: the turn stays.
  else
    calls = math.min(wanted - granted, batch)
    line = math.max(line, first)
    -- Release 0.1 joins no line. Once in each round, a call is left to its replicas.
    local turns = math.max(math.ceil((line - first) / every), 1)
    if is_asked_by_0_1 and math.floor(line / every) % turns == 0 then line = line + every end
    at = line + (calls - 1) * every
    line = at + every
  end
  wait = math.max(at, first, now) - now
else
  at, calls = 0, 0
end
-- Where turns remain unused, the next may, too. The time counts even if all that was wanted now is granted.
if unused > 0 and (wait == 0 or wait > first + kept - now) then wait = math.max(first + kept - now, 0) end
if line > math.max(stored, first) then
  redis.call('SET', KEYS[2], string.format('%.0f', line), 'PX', math.ceil((line - now + kept) / 1000))
end
return {granted, wait, at, calls}
