"""Receives messages: arq's worker, adapted, and the supervisor that restarts it after a failure of Redis.

`ArqConsumer`  fetches messages in batches as soon as they are dispatched, and fails when Redis does. Everything that is
               not overridden is arq's: keys, message format, health checks, aborts. So stock arq workers
               can share the queue with it, and stock arq producers can send to it.
`Supervisor`   keeps a consumer running, and shuts the worker down in order on a signal
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import arq.worker
import structlog
from arq.utils import timestamp_ms
from arq.worker import Worker as ArqWorker
from redis.exceptions import RedisError, ResponseError

from domain.jobs.transport.job_queue import FUNCTION_NAME, QueueUnavailable, read_message
from domain.jobs.transport.scripts import ACKNOWLEDGE
from domain.jobs.transport.write_errors import is_from_replica, is_wrong_type
from domain.tasks import cancel_and_wait, detach
from worker.fetching import FETCH, Discarded, Fetched, is_for_arq
from worker.runner import Runner

#: How long a fetched message is reserved for this worker, until its row is claimed. If the worker dies in between, that
#: much time is lost; if the reservation ends too early, two workers try to claim and one of them gets the row.
_CLAIM_TIMEOUT_SECONDS: Final = 3.0
#: Interval of polling without a wake-up: stock producers send none, and the worker that received one may have died.
_POLL_SECONDS: Final = 0.5

_RECONNECT_SECONDS: Final = 1.0
#: How long storage work has, after the drain, to notice that it was stopped.
RELEASE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


async def _log_no_info(*_: object) -> None:
    """Replace arq's first step, which logs the reply to INFO: a restricted user of Redis may not send this command."""


arq.worker.log_redis_info = _log_no_info  # type: ignore[attr-defined, assignment]


class ArqConsumer(ArqWorker):
    """Passes messages to a runner, until Redis fails or refuses a command."""

    def __init__(self, runner: Runner, settings: dict[str, Any], discarded: Discarded | None = None) -> None:
        # arq sleeps for the poll delay after each iteration; here an iteration itself waits until there is work.
        super().__init__(**settings | {"poll_delay": 0}, handle_signals=False, ctx={"runner": runner})
        self.in_progress_timeout_s = _CLAIM_TIMEOUT_SECONDS
        self._runner = runner
        self._fetches = 0
        #: Number of useless messages that the last fetch removed: there may be more.
        self._removed = 0
        self._discarded = discarded or Discarded()

    async def _poll_iteration(self) -> None:
        """Fetch and handle messages, or wait for some. arq's `main` calls it in a loop."""
        capacity = self._free_capacity()
        self._removed = 0
        messages = await self._fetch(capacity) if capacity else []
        await self._handle(messages)
        self._discarded.report()
        # The next two are arq's: aborts concern only messages that arq runs, and `heart_beat` writes a health key.
        if self.allow_abort_jobs:
            await self._cancel_aborted_jobs()
        await self.heart_beat()
        if len(messages) < max(capacity, 1) and not self._removed:
            await self._wait_for_messages()

    def _free_capacity(self) -> int:
        """Return how many messages may be fetched now."""
        return self._runner.load.capacity if self.allow_pick_jobs else 0

    async def _fetch(self, limit: int) -> Sequence[Fetched]:
        """Fetch and reserve up to ``limit`` messages that this worker can use, in one round trip.

        Raises:
            ResponseError: Redis refuses writes.
        """
        fetch, names, backends = self.pool.register_script(FETCH), self._runner.queue.keys, self._runner.backends()
        keys = [key for backend in backends for key in (*names.messages(backend), names.wakeups(backend))]
        functions = map(json.dumps, {FUNCTION_NAME, *self.functions})
        self._fetches += 1
        reserve_ms = int(self.in_progress_timeout_s * 1000)
        arguments: list[str | int] = [timestamp_ms(), limit, reserve_ms, self._fetches % len(backends), *functions]
        self._removed, example, reply = await fetch(keys=keys, args=arguments)
        self._discarded.add(self._removed, example)
        return [Fetched(backends[number], *rest) for number, *rest in zip(*[iter(reply)] * 3, strict=True)]

    async def _handle(self, messages: Sequence[Fetched]) -> None:
        """Let the runner handle messages of ours, and arq those of stock producers; remove all others."""
        ours, useless = [], []
        for message in messages:
            if job_message := read_message(message.id, message.data, message.backend):
                ours.append(job_message)
            elif is_for_arq(message, self.functions):
                name = message.id.decode()
                self.tasks[name] = self.loop.create_task(self._run_by_arq(message))
                self.tasks[name].add_done_callback(partial(self._forget, name))
            else:
                useless.append(message)
        if ours:
            self._runner.start(ours)
        await self._discard(useless)

    async def _run_by_arq(self, message: Fetched) -> None:
        """Let arq run a message that a stock producer sent under a message id of its own."""
        score = await self.pool.zscore(self.queue_name, message.id)
        try:
            await self.run_job(message.id.decode(), int(score or timestamp_ms()))
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            await self._discard([message])  # what is stored under one of arq's keys for it is not arq's

    async def _discard(self, messages: Sequence[Fetched]) -> None:
        """Remove messages that are of no use, all at once."""
        if messages:
            names, backends = self._runner.queue.keys, {message.backend for message in messages}
            keys = [key for backend in backends for key in names.messages(backend)]
            await self.pool.register_script(ACKNOWLEDGE)(keys=keys, args=[message.id for message in messages])
            self._discarded.add(len(messages), messages[-1].id)

    def _forget(self, message_id: str, task: "asyncio.Task[None]") -> None:
        if self.tasks.get(message_id) is task:  # otherwise the message was fetched again meanwhile
            del self.tasks[message_id]

    async def _wait_for_messages(self) -> None:
        """Wait for free capacity, or for a wake-up; at most one poll interval, so that nothing depends on either."""
        if self._free_capacity():
            # redis-py annotates the timeout as whole seconds, and the result as that of its synchronous client too.
            wakeups = [*map(self._runner.queue.keys.wakeups, self._runner.backends())]
            await self.pool.blpop(wakeups, timeout=_POLL_SECONDS)  # type: ignore[arg-type, misc]
            return
        self._runner.load.freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._runner.load.freed.wait()


class Supervisor:
    """The life cycle of one worker process: consume until a signal, drain, release the remaining jobs."""

    def __init__(self, runner: Runner, arq_settings: dict[str, Any], *, drain: float) -> None:
        """Prepare a supervisor; ``drain`` is how long jobs may go on after the first signal, in seconds."""
        self._runner = runner
        self._arq_settings = arq_settings
        self._drain = drain
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._consumer: ArqConsumer | None = None
        self._discarded = Discarded()

    async def run(self) -> None:
        """Consume messages until SIGTERM or SIGINT, then drain; a second signal ends the drain.

        Raises:
            RuntimeError: the consumer ended without a signal.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        async with self.consuming() as consuming:
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait((stop, consuming), return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait((stop,))
        if not self._stop.is_set():  # a worker that is alive but consumes nothing would go unnoticed
            raise RuntimeError("the consumer ended without a signal")
        log.info("worker.stopped")

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[asyncio.Task[None]]:
        """Consume messages while the block runs; then drain, and release the remaining jobs."""
        consuming = asyncio.create_task(self._consume())
        log.info("worker.ready")
        try:
            yield consuming
        finally:
            await self._drain_and_stop(consuming)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._force.set()
        self._stop.set()

    async def _consume(self) -> None:
        """Run a consumer for as long as Redis is available, and another one when it is back."""
        while True:
            # A new consumer each time: the connection and the counters of the last one are in an unknown state.
            self._consumer = ArqConsumer(self._runner, self._arq_settings, self._discarded)
            self._consumer.allow_pick_jobs = not self._stop.is_set()  # Redis may come back only during the drain
            try:
                await self._consumer.main()
            except ResponseError as error:
                await self._wait_until_writable(error)
            except (RedisError, OSError) as error:
                log.warning("redis.lost", error=str(error))
            except Exception:
                log.exception("consumer.failed")
            with suppress(RedisError, OSError):  # the address may lead to another server by now
                await self._consumer.pool.connection_pool.disconnect(inuse_connections=False)
            detach(self._consumer.tasks.values())  # their jobs go on; they only cannot reach this connection any more
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _wait_until_writable(self, error: ResponseError) -> None:
        """Wait until Redis accepts writes. Only ping it: restarting arq to find out would be noisy."""
        queue = self._runner.queue
        try:
            await queue.ping(self._runner.backends())  # its error names the command or key; that of a script may not
        except QueueUnavailable:
            is_over = False
        else:  # only the consumer's connection still led to the replica, whose refusals were logged when they began
            is_over = is_from_replica(error)
        if queue.write_errors.condition is None and not is_over:
            queue.write_errors.note(error)
        while queue.write_errors.condition is not None:
            await asyncio.sleep(_RECONNECT_SECONDS)
            with suppress(QueueUnavailable):
                await queue.ping(self._runner.backends())

    async def _drain_and_stop(self, consuming: asyncio.Task[None]) -> None:
        """Fetch nothing more, give running jobs time to end, then release the rest."""
        log.info("worker.draining", jobs=len(self._runner.running), seconds=self._drain)
        if self._consumer is not None:
            self._consumer.allow_pick_jobs = False
        ends = [asyncio.create_task(self._runner.drained()), asyncio.create_task(self._force.wait())]
        await asyncio.wait(ends, timeout=self._drain, return_when=asyncio.FIRST_COMPLETED)
        await self._release_jobs()
        await cancel_and_wait((*ends, consuming))
        if self._consumer is not None:
            await self._close_arq(self._consumer)

    async def _release_jobs(self) -> None:
        """Release all jobs, or exit if storage hangs.

        A hung storage thread cannot be ended, and a normal exit of Python would wait for it. The exit status is not 0,
        because these jobs lose an attempt: other workers rescue them when their leases have expired.
        """
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._runner.close()
        except TimeoutError:
            log.error("worker.forced_exit", jobs=sorted(map(str, self._runner.running)))  # noqa: TRY400 (not a bug)
            os._exit(os.EX_TEMPFAIL)

    async def _close_arq(self, arq: ArqConsumer) -> None:
        """Wait until arq has acknowledged its last messages, then delete its health key and close its connections."""
        await asyncio.gather(*arq.tasks.values(), return_exceptions=True)
        try:
            try:
                await arq.pool.delete(arq.health_check_key)
            finally:
                await arq.pool.aclose(close_connection_pool=True)
        except (RedisError, OSError) as error:
            log.warning("redis.lost", error=str(error))
