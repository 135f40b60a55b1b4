-- Returns the stored link, or '' without one. KEYS: link. A value larger than any that is ever stored counts as
-- missing.
local length = redis.call('STRLEN', KEYS[1])
return length <= 524288 and redis.call('GET', KEYS[1]) or ''
