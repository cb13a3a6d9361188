"""The Lua scripts that send and remove messages, each in one round trip."""

from typing import Final

from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

#: Maximum number of elements of the list that wakes idle workers.
MAX_WAKEUPS: Final = 32
_MESSAGE_KEYS: Final = (job_key_prefix, retry_key_prefix, in_progress_key_prefix)

#: Sends messages to one queue, each in a turn of its project: behind the project's last one, and not before the first
#: message that waits. So a project that sends ten thousand messages delays others by no more than is at work already
#: (start-time fair queuing, Goyal et al. 1996, with one cost for all messages). KEYS are the queue, the set with the
#: last turn of each project, and the wake-up list. ARGV are the lifetime of a message, the last turn that is possible,
#: and for each message its id, its data and its project. A message that is in the queue keeps its turn.
SEND: Final = f"""
local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2], 'WITHSCORES', 'LIMIT', 0, 1)[2]
if not first then redis.call('DEL', KEYS[2]) end
local turns, sent = {{}}, 0
for i = 3, #ARGV, 3 do
    local id, project = ARGV[i], ARGV[i + 2]
    redis.call('SET', '{job_key_prefix}' .. id, ARGV[i + 1], 'PX', ARGV[1], 'NX')
    if not redis.call('ZSCORE', KEYS[1], id) then
        local last = turns[project] or tonumber(redis.call('ZSCORE', KEYS[2], project) or 0)
        turns[project] = math.min(math.max(last + 1, tonumber(first or 0)), tonumber(ARGV[2]))
        redis.call('ZADD', KEYS[1], turns[project], id)
        redis.call('LPUSH', KEYS[3], '')
        sent = sent + 1
    end
end
for project, turn in pairs(turns) do redis.call('ZADD', KEYS[2], turn, project) end
if sent > 0 then redis.call('LTRIM', KEYS[3], 0, {MAX_WAKEUPS - 1}) end
"""

#: Removes messages from a queue, and all keys that arq has for them. If maintenance sends the same id again, nothing of
#: the earlier message is in its way.
ACKNOWLEDGE: Final = f"""
if #ARGV > 0 then redis.call('ZREM', KEYS[1], unpack(ARGV)) end
for _, id in ipairs(ARGV) do
    redis.call('DEL', {", ".join(f"'{prefix}' .. id" for prefix in _MESSAGE_KEYS)})
end
"""
