"""Keeps the consumer running: restarts it after a Redis failure, and shuts the worker down in order on a signal."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any, Final

import structlog
from redis.exceptions import RedisError, ResponseError

from domain.jobs.transport.job_queue import QueueUnavailable
from domain.tasks import cancel_and_wait, detach
from worker.consumer import ArqConsumer
from worker.runner import Runner

_RECONNECT_SECONDS: Final = 1.0
#: How long storage work has, after the drain, to notice that it was stopped.
RELEASE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


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

    async def run(self) -> None:
        """Consume messages until SIGTERM or SIGINT, then drain; a second signal ends the drain.

        Raises:
            RuntimeError: the consumer ended without a signal.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        consuming = asyncio.create_task(self._consume())
        log.info("worker.ready")
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((stop, consuming), return_when=asyncio.FIRST_COMPLETED)
        await self._drain_and_stop(consuming)
        await cancel_and_wait((stop,))
        if not self._stop.is_set():  # a worker that is alive but consumes nothing would go unnoticed
            raise RuntimeError("the consumer ended without a signal")
        log.info("worker.stopped")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._force.set()
        self._stop.set()

    async def _consume(self) -> None:
        """Run a consumer for as long as Redis is available, and another one when it is back."""
        while True:
            # A new consumer each time: the connection and the counters of the last one are in an unknown state.
            self._consumer = ArqConsumer(self._runner, self._arq_settings)
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
        queue.write_errors.note(error)
        while queue.write_errors.condition is not None:
            await asyncio.sleep(_RECONNECT_SECONDS)
            with suppress(QueueUnavailable):
                await queue.ping()

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
