"""arq's worker, adapted: it fetches messages in batches as soon as they are dispatched, and fails when Redis does.

Everything that is not overridden here is arq's: keys, message format, burst mode, health checks, aborts. So stock arq
workers can share the queue with it, and stock arq producers can send to it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import arq.worker
import structlog
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.utils import timestamp_ms
from arq.worker import Worker as ArqWorker

from domain.jobs.transport.job_queue import WAKEUPS
from domain.jobs.transport.messages import read_message
from worker.runner import Runner

#: How long a fetched message is reserved for this worker, until its row is claimed. If the worker dies in between, that
#: much time is lost; if the reservation ends too early, two workers try to claim and one of them gets the row.
_CLAIM_TIMEOUT_SECONDS: Final = 3.0
#: Interval of polling without a wake-up: stock producers send none, and the worker that received one may have died.
_POLL_SECONDS: Final = 0.5

#: Fetches and reserves messages that are due and not reserved, however many reserved ones come before them; clears the
#: wake-up list if none are left.
_FETCH: Final = f"""
local fetched, offset, limit = {{}}, 0, tonumber(ARGV[2])
local page = math.max(limit, 100)
repeat
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', offset, page)
    for _, id in ipairs(due) do
        if #fetched < 2 * limit and redis.call('SET', '{in_progress_key_prefix}' .. id, '1', 'NX', 'PX', ARGV[3]) then
            table.insert(fetched, id)
            table.insert(fetched, redis.call('GET', '{job_key_prefix}' .. id))
        end
    end
    offset = offset + #due
until #due < page or #fetched == 2 * limit
if #fetched < 2 * limit then redis.call('DEL', KEYS[2]) end
return fetched
"""

log = structlog.get_logger(__name__)

Message = tuple[bytes, bytes | None]


async def _log_no_info(*_: object) -> None:
    """Replace arq's first step, which logs the reply to INFO: a restricted user of Redis may not send this command."""


arq.worker.log_redis_info = _log_no_info  # type: ignore[attr-defined, assignment]


class ArqConsumer(ArqWorker):
    """Passes messages to a runner, until Redis fails or refuses a command."""

    def __init__(self, runner: Runner, settings: dict[str, Any]) -> None:
        # arq sleeps for the poll delay after each iteration; here an iteration itself waits until there is work.
        delay = {} if settings.get("burst") else {"poll_delay": 0}
        super().__init__(**settings | delay, handle_signals=False, ctx={"runner": runner})
        self.in_progress_timeout_s = _CLAIM_TIMEOUT_SECONDS
        self._runner = runner

    async def _poll_iteration(self) -> None:
        capacity = self._free_capacity()
        messages = await self._fetch(capacity) if capacity else []
        for message_id, message in messages:
            self._handle(message_id, message)
        # The next two are arq's: aborts concern only messages that arq runs, and `heart_beat` writes a health key.
        if self.allow_abort_jobs:
            await self._cancel_aborted_jobs()
        await self.heart_beat()
        if not self.burst and len(messages) < max(capacity, 1):
            await self._wait_for_messages()

    def _free_capacity(self) -> int:
        """Return how many messages may be fetched now."""
        if not self.allow_pick_jobs:
            return 0
        capacity = self._runner.capacity
        if self.burst and self.max_burst_jobs >= 0:
            capacity = min(capacity, self.max_burst_jobs - self._jobs_started())
        return max(capacity, 0)

    async def _fetch(self, limit: int) -> Sequence[Message]:
        """Fetch and reserve up to ``limit`` messages, in one round trip.

        Raises:
            ResponseError: Redis refuses writes.
        """
        fetch = self.pool.register_script(_FETCH)
        reserve_ms = int(self.in_progress_timeout_s * 1000)
        reply = await fetch(keys=[self.queue_name, WAKEUPS], args=[timestamp_ms(), limit, reserve_ms])
        return list(zip(reply[::2], reply[1::2], strict=True))

    def _handle(self, message_id: bytes, message: bytes | None) -> None:
        """Let the runner handle a message of ours, and arq any other message."""
        job_message, name = read_message(message_id, message), message_id.decode()
        task = self._runner.start(job_message) if job_message else self.loop.create_task(self._run_by_arq(name))
        task.add_done_callback(partial(self._on_handled if job_message else self._forget, name))
        self.tasks[name] = task

    async def _run_by_arq(self, message_id: str) -> None:
        """Let arq run the message, as with a message that a stock producer sent under a message id of its own."""
        score = await self.pool.zscore(self.queue_name, message_id)
        await self.run_job(message_id, int(score or timestamp_ms()))

    def _on_handled(self, message_id: str, task: "asyncio.Task[None]") -> None:
        if (error := task.exception()) is None:
            self.jobs_complete += 1
        else:
            self.jobs_failed += 1
            log.error("job.task_failed", message=message_id, exc_info=error)
        self._forget(message_id, task)

    def _forget(self, message_id: str, task: "asyncio.Task[None]") -> None:
        if self.tasks.get(message_id) is task:  # otherwise the message was fetched again meanwhile
            del self.tasks[message_id]

    async def _wait_for_messages(self) -> None:
        """Wait for free capacity, or for a wake-up; at most one poll interval, so that nothing depends on either."""
        if self._free_capacity():
            # redis-py annotates the timeout as whole seconds, and the result as that of its synchronous client too.
            await self.pool.blpop([WAKEUPS], timeout=_POLL_SECONDS)  # type: ignore[arg-type, misc]
            return
        self._runner.capacity_freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._runner.capacity_freed.wait()
