"""Keeps arq delivering: starts it again when Redis was away, and ends it in good order on a signal."""

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
#: How long storage work may take to notice that it is to stop.
RELEASE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class Supervisor:
    """The life of one worker process: deliver until a signal comes, drain, hand back what is left."""

    def __init__(self, runner: Runner, arq_settings: dict[str, Any], *, drain: float) -> None:
        """``drain``: how many seconds jobs have to end by themselves after the first signal."""
        self._runner = runner
        self._arq_settings = arq_settings
        self._drain = drain
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._arq: ArqConsumer | None = None

    async def run(self) -> None:
        """Deliver messages until SIGTERM or SIGINT; a second signal ends the draining."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        delivery = asyncio.create_task(self._consume())
        log.info("worker.ready")
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((stop, delivery), return_when=asyncio.FIRST_COMPLETED)
        await self._drain_and_stop(delivery)
        await cancel_and_wait((stop,))
        if not self._stop.is_set():  # a worker that beats but takes nothing is worse than none
            raise RuntimeError("the delivery of messages has ended by itself")
        log.info("worker.stopped")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._force.set()
        self._stop.set()

    async def _consume(self) -> None:
        """Have arq deliver for as long as Redis is there, and again when it is back."""
        while True:
            # A new one each time: arq counts a slot as taken for ever when Redis fails in the middle of its claim.
            self._arq = ArqConsumer(self._runner, self._arq_settings)
            self._arq.allow_pick_jobs = not self._stop.is_set()  # Redis may be back only when we are draining
            try:
                await self._arq.main()
            except ResponseError as error:
                await self._wait_until_writable(error)
            except (RedisError, OSError) as error:
                log.warning("redis.lost", error=str(error))
            except Exception:
                log.exception("consumer.failed")
            detach(self._arq.tasks.values())  # their jobs go on; only their words to this Redis are lost
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _wait_until_writable(self, error: ResponseError) -> None:
        """Wait until Redis can be written to again; which is only asked, for arq would ask far more loudly."""
        queue = self._runner.queue
        queue.write_errors.note(error)
        while queue.write_errors.condition is not None:
            await asyncio.sleep(_RECONNECT_SECONDS)
            with suppress(QueueUnavailable):
                await queue.ping()

    async def _drain_and_stop(self, delivery: asyncio.Task[None]) -> None:
        """Take nothing new, let jobs end for a while, then have them handed back."""
        log.info("worker.draining", jobs=len(self._runner.running), seconds=self._drain)
        if self._arq is not None:
            self._arq.allow_pick_jobs = False
        ends = [asyncio.create_task(self._runner.drained()), asyncio.create_task(self._force.wait())]
        await asyncio.wait(ends, timeout=self._drain, return_when=asyncio.FIRST_COMPLETED)
        await self._release_jobs()
        await cancel_and_wait((*ends, delivery))
        if self._arq is not None:
            await self._close_arq(self._arq)

    async def _release_jobs(self) -> None:
        """Have jobs handed back, but do not wait for ever for storage that hangs.

        Its threads cannot be ended, and Python would wait for them. The exit code is not 0, for these jobs lose an
        attempt: they go elsewhere when their leases are over.
        """
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._runner.close()
        except TimeoutError:
            log.error("worker.forced_exit", jobs=sorted(map(str, self._runner.running)))  # noqa: TRY400 (no failure of ours)
            os._exit(os.EX_TEMPFAIL)

    async def _close_arq(self, arq: ArqConsumer) -> None:
        """Let arq give its last messages up and close its connections."""
        await asyncio.gather(*arq.tasks.values(), return_exceptions=True)
        try:
            await arq.pool.delete(arq.health_check_key)
            await arq.pool.aclose(close_connection_pool=True)
        except (RedisError, OSError) as error:
            log.warning("redis.lost", error=str(error))
