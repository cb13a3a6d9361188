"""Fetches messages from Redis, and tells those that are of use from what others have left in the queues."""

import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

import structlog
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

from domain.jobs.transport.job_queue import FUNCTION_NAME, deserialize, message_from

#: The maximum length of a message in bytes; those of Cistern have 150.
_MAX_BYTES: Final = 65_536
#: Maximum number of useless messages that one fetch removes: Redis does nothing else meanwhile.
_MAX_REMOVED: Final = 5_000
#: Times of a message after the year 9000 cannot be converted, in milliseconds.
_MAX_MS: Final = 220_000_000_000_000
_LOG_SECONDS: Final = 60.0

#: Maximum number of messages that are read from a queue at once.
_MAX_PAGE: Final = 1_000
#: Minimum number of messages that are read behind those that were of no use, or that stock workers have reserved.
_MIN_NEXT_PAGE: Final = 100
#: How many of the reserved messages one fetch looks at, in their order: the others wait for these to be restored.
_MAX_RESTORED: Final = 8

#: Fetches and reserves messages that are due. KEYS are three for each queue: the queue, its reserved messages, and its
#: wake-up list, which is cleared if no message is left. ARGV are the time, how many to fetch, how long to reserve them
#: in milliseconds, and the number of the queue to begin with: each has its turn, so that none starves behind a full
#: one. From ARGV[5] on: the names of functions. A message without one of them in its text runs nothing, so it is
#: removed, with all keys that arq has for it, without costing the worker capacity. Returned are the number of those,
#: one of them, and the fetched ones.
#:
#: A message is reserved by arq's key "in progress", which expires. One of ours also moves to the reserved messages, so
#: that no fetch reads it again, however many workers there are. It moves back, to its turn, when it is still there
#: without that key: the worker has died. The messages of stock producers have ids of another form, and stay in the
#: queue, from which arq removes them.
FETCH: Final = f"""
local fetched, limit, queues = {{}}, tonumber(ARGV[2]), #KEYS / 3
local removed, example = 0, ''

local function is_useful(data)
    if type(data) ~= 'string' or #data > {_MAX_BYTES} then return false end
    for i = 5, #ARGV do
        if string.find(data, ARGV[i], 1, true) then return true end
    end
    return false
end

local function remove(queue, ids)
    if #ids == 0 then return end
    redis.call('ZREM', queue, unpack(ids))
    for _, id in ipairs(ids) do
        redis.call('DEL', '{job_key_prefix}' .. id, '{retry_key_prefix}' .. id, '{in_progress_key_prefix}' .. id)
    end
    removed, example = removed + #ids, ids[1]
end

local function restore(queue, reserved)
    local first = redis.call('ZRANGEBYSCORE', reserved, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, {_MAX_RESTORED})
    for i = 1, #first, 2 do
        if redis.call('EXISTS', '{in_progress_key_prefix}' .. first[i]) == 0 then
            redis.call('ZADD', queue, first[i + 1], first[i])
            redis.call('ZREM', reserved, first[i])
        end
    end
end

local function move(queue, reserved, ids, scores)
    if #ids == 0 then return end
    redis.call('ZREM', queue, unpack(ids))
    redis.call('ZADD', reserved, unpack(scores))
end

for turn = 0, queues - 1 do
    local number, offset, page, is_last = (ARGV[4] + turn) % queues, 0, math.min(limit, {_MAX_PAGE}), false
    local queue, reserved, wakeups = KEYS[3 * number + 1], KEYS[3 * number + 2], KEYS[3 * number + 3]
    restore(queue, reserved)
    repeat
        local due = redis.call('ZRANGEBYSCORE', queue, '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', offset, page)
        local ours, scores, useless = {{}}, {{}}, {{}}
        for i = 1, #due, 2 do
            if #fetched == 3 * limit then break end
            local id = due[i]
            local data = redis.pcall('GET', '{job_key_prefix}' .. id)
            if not is_useful(data) then
                table.insert(useless, id)
            else
                local is_free = redis.call('SET', '{in_progress_key_prefix}' .. id, '1', 'NX', 'PX', ARGV[3])
                if is_free then
                    table.insert(fetched, number)
                    table.insert(fetched, id)
                    table.insert(fetched, data)
                end
                if is_free and string.sub(id, 37, 37) == ':' then
                    table.insert(ours, id)
                    table.insert(scores, due[i + 1])
                    table.insert(scores, id)
                else
                    offset = offset + 1
                end
            end
        end
        move(queue, reserved, ours, scores)
        remove(queue, useless)
        is_last = #due < 2 * page
        page = math.max(page, {_MIN_NEXT_PAGE})
    until is_last or #fetched == 3 * limit or removed >= {_MAX_REMOVED}
    if #fetched == 3 * limit or removed >= {_MAX_REMOVED} then break end
    redis.call('DEL', wakeups)
end
return {{removed, example, fetched}}
"""

log = structlog.get_logger(__name__)


class Fetched(NamedTuple):
    """A message as it is in Redis; ``backend`` is that of its queue."""

    backend: str | None
    id: bytes
    data: bytes


class Discarded:
    """Counts messages that were of no use, and logs them at most once a minute: any client can send them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._example = b""
        self._next_log_at = 0.0

    def add(self, count: int, example: bytes) -> None:
        """Count messages; ``example`` is the id of one of them."""
        if count:
            self._count += count
            self._example = example

    def report(self) -> None:
        """Log what was counted since the last line; to be called again and again."""
        if self._count and (now := self._clock()) >= self._next_log_at:
            log.warning("messages.discarded", count=self._count, example=ascii(self._example[:100]))
            self._count, self._next_log_at = 0, now + _LOG_SECONDS


def is_for_arq(message: Fetched, functions: Collection[str]) -> bool:
    """Return whether arq can run a message: one that a stock producer has sent under an id of its own.

    Stock producers know one queue. What is found in another one is of no use.
    """
    try:
        message.id.decode()
        content = deserialize(message.data)
        if message.backend is not None or content["f"] not in functions:
            return False
        if content["f"] == FUNCTION_NAME:
            message_from(*content["a"], **content["k"])
        return _is_time(content["et"]) and (content["t"] is None or type(content["t"]) is int)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_MS
