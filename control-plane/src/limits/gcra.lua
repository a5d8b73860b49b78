-- What limits::policy::admit does, for all replicas together. KEYS: the buckets. ARGV: for each its interval, its tolerance, the
-- least that its TAT can be, and how far ahead of now a TAT is believed, in microseconds. Gives how long to wait (0: admitted), the
-- time here, and the TATs.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tats, wait = {}, 0
for i, key in ipairs(KEYS) do
    local tolerance, furthest = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i])
    local tat = now
    for _, known in ipairs({tonumber(redis.call('GET', key) or 0), tonumber(ARGV[4 * i - 1])}) do
        -- Made by a clock that was wrong.
        if known > now + furthest then known = now + tolerance end
        tat = math.max(tat, known)
    end
    tats[i] = tat
    wait = math.max(wait, tat - now - tolerance)
end
local reply = {wait, now}
for i, key in ipairs(KEYS) do
    if wait == 0 then
        tats[i] = tats[i] + tonumber(ARGV[4 * i - 3])
        redis.call('SET', key, string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000))
    end
    reply[i + 2] = tats[i]
end
return reply
