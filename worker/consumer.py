"""arq's worker, as we need it: it takes messages in batches, as soon as they are rung, and fails where Redis refuses.

What is not overridden here is arq's: its keys and the form of its messages, burst, health checks, aborts. So the
stock worker can work beside it on the same queue, and the stock producer can send to it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.utils import timestamp_ms
from arq.worker import Worker

from domain.jobs.transport.job_queue import WAKEUPS
from domain.jobs.transport.messages import read_message
from worker.runner import Runner

#: How long arq keeps a message from others that was delivered here, until the row is claimed. If we die in between it
#: is lost time; if it runs out too early, two claims meet, of which one gets the row.
_CLAIM_TIMEOUT_SECONDS: Final = 3.0
#: How often we look without being rung for: stock producers have no bell, and one that was woken may have died.
_POLL_SECONDS: Final = 0.5

#: Takes messages that are due and that nobody has, past all that others have; silences the bell if there are no more.
_FETCH: Final = f"""
local taken, seen, wanted = {{}}, 0, tonumber(ARGV[2])
local page = math.max(wanted, 100)
repeat
    local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', seen, page)
    for _, id in ipairs(due) do
        if #taken < 2 * wanted and redis.call('SET', '{in_progress_key_prefix}' .. id, '1', 'NX', 'PX', ARGV[3]) then
            table.insert(taken, id)
            table.insert(taken, redis.call('GET', '{job_key_prefix}' .. id))
        end
    end
    seen = seen + #due
until #due < page or #taken == 2 * wanted
if #taken < 2 * wanted then redis.call('DEL', KEYS[2]) end
return taken
"""

log = structlog.get_logger(__name__)

Message = tuple[bytes, bytes | None]


class ArqConsumer(Worker):
    """Delivers messages to a runner, until Redis fails or refuses."""

    def __init__(self, runner: Runner, settings: dict[str, Any]) -> None:
        # A poll delay is what arq sleeps after each iteration; ours ends when there is something to do.
        delay = {} if settings.get("burst") else {"poll_delay": 0}
        super().__init__(**settings | delay, handle_signals=False, ctx={"runner": runner})
        self.in_progress_timeout_s = _CLAIM_TIMEOUT_SECONDS
        self._runner = runner

    async def _poll_iteration(self) -> None:
        room = self._free_capacity()
        taken = await self._fetch(room) if room else []
        for message_id, message in taken:
            self._handle(message_id, message)
        if self.allow_abort_jobs:
            await self._cancel_aborted_jobs()
        await self.heart_beat()
        if not self.burst and len(taken) < max(room, 1):
            await self._wait_for_messages()

    def _free_capacity(self) -> int:
        """How many messages may be taken now."""
        if not self.allow_pick_jobs:
            return 0
        room = self._runner.capacity
        if self.burst and self.max_burst_jobs >= 0:
            room = min(room, self.max_burst_jobs - self._jobs_started())
        return max(room, 0)

    async def _fetch(self, wanted: int) -> Sequence[Message]:
        """Take up to so many messages, in one round trip.

        Raises:
            ResponseError: Redis refuses to be written to.
        """
        take = self.pool.register_script(_FETCH)
        patience = int(self.in_progress_timeout_s * 1000)
        found = await take(keys=[self.queue_name, WAKEUPS], args=[timestamp_ms(), wanted, patience])
        return list(zip(found[::2], found[1::2], strict=True))

    def _handle(self, message_id: bytes, message: bytes | None) -> None:
        """Have the runner answer a ring; whatever is none of ours is arq's own business."""
        dispatch, name = read_message(message_id, message), message_id.decode()
        task = self._runner.start(dispatch) if dispatch else self.loop.create_task(self._run_by_arq(name))
        task.add_done_callback(partial(self._on_handled if dispatch else self._forget, name))
        self.tasks[name] = task

    async def _run_by_arq(self, message_id: str) -> None:
        """Have arq do as it does, also with rings that somebody has sent under an id of his own."""
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
        if self.tasks.get(message_id) is task:  # else it came again meanwhile
            del self.tasks[message_id]

    async def _wait_for_messages(self) -> None:
        """Wait until there is room, or for the bell; not for long, so that nothing depends on it."""
        if self._free_capacity():
            # redis-py types it for whole seconds, and for its synchronous client too.
            await self.pool.blpop([WAKEUPS], timeout=_POLL_SECONDS)  # type: ignore[arg-type, misc]
            return
        self._runner.capacity_freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._runner.capacity_freed.wait()
