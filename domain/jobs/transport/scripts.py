"""The Lua scripts that send and remove messages, each in one round trip."""

from typing import Final

from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

#: Maximum number of elements of the list that wakes idle workers.
MAX_WAKEUPS: Final = 32
#: Scores up to here are turns, later ones are times in milliseconds; this one is a time in 1973.
_LAST_TURN: Final = 100_000_000_000
#: Maximum number of messages of the version before that one call gives turns.
_MAX_ADOPTED: Final = 100
_MESSAGE_KEYS: Final = (job_key_prefix, retry_key_prefix, in_progress_key_prefix)

#: Sends messages to one queue, each in a turn of its project: behind the project's last one, and not before the first
#: message that waits. So a project that sends ten thousand messages delays others by no more than is at work already
#: (start-time fair queuing, Goyal et al. 1996, with one cost for all messages). KEYS are the queue, the reserved
#: messages, the set with the last turn of each project, and the wake-up list. ARGV are the lifetime of a message, the
#: time an hour ago, and for each message its id, its data and its project. A message that is in the queue keeps its
#: turn, and one that a worker has reserved is not sent again.
#:
#: The version before gave its messages the time an hour ago as their score, so that they would wait until no turn is
#: left, which may be never. While both versions send, these messages get turns here, as if all were of one project.
#: Messages of stock producers have other ids, and keep their scores: arq calculates with them.
SEND: Final = f"""
local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', {_LAST_TURN}, 'WITHSCORES', 'LIMIT', 0, 1)[2]
if not first then redis.call('DEL', KEYS[3]) end
local turns, sent = {{}}, 0

local function take_turn(id, project)
    local last = turns[project] or tonumber(redis.call('ZSCORE', KEYS[3], project) or 0)
    turns[project] = math.min(math.max(last + 1, tonumber(first or 0)), {_LAST_TURN})
    redis.call('ZADD', KEYS[1], turns[project], id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '({_LAST_TURN}', ARGV[2], 'LIMIT', 0, {_MAX_ADOPTED})) do
    if string.sub(id, 37, 37) == ':' then take_turn(id, '') end
end
for i = 3, #ARGV, 3 do
    local id, project = ARGV[i], ARGV[i + 2]
    redis.call('SET', '{job_key_prefix}' .. id, ARGV[i + 1], 'PX', ARGV[1], 'NX')
    if not redis.call('ZSCORE', KEYS[1], id) and not redis.call('ZSCORE', KEYS[2], id) then
        take_turn(id, project)
        redis.call('LPUSH', KEYS[4], '')
        sent = sent + 1
    end
end
for project, turn in pairs(turns) do redis.call('ZADD', KEYS[3], turn, project) end
if sent > 0 then redis.call('LTRIM', KEYS[4], 0, {MAX_WAKEUPS - 1}) end
"""

#: Removes messages from the sorted sets in KEYS, and all keys that arq has for them. If maintenance sends the same id
#: again, nothing of the earlier message is in its way.
ACKNOWLEDGE: Final = f"""
if #ARGV == 0 then return end
for _, key in ipairs(KEYS) do redis.call('ZREM', key, unpack(ARGV)) end
for _, id in ipairs(ARGV) do
    redis.call('DEL', {", ".join(f"'{prefix}' .. id" for prefix in _MESSAGE_KEYS)})
end
"""

#: Returns the positions in ARGV of the messages that are in none of the sorted sets in KEYS, and deletes their data: a
#: key that remained without its message would keep it from being sent again.
MISSING: Final = f"""
local missing = {{}}
for position, id in ipairs(ARGV) do
    local is_there = false
    for _, key in ipairs(KEYS) do is_there = is_there or redis.call('ZSCORE', key, id) end
    if not is_there then
        redis.call('DEL', '{job_key_prefix}' .. id)
        table.insert(missing, position)
    end
end
return missing
"""
