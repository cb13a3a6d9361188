"""Rings what is due, rescues what was orphaned, finds lost messages. Every worker does so; none leads.

Conditional updates and SKIP LOCKED make each round safe to run anywhere, any number of times.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from domain.errors import DatabaseUnavailable
from domain.jobs.foreman import Foreman
from domain.jobs.queue import QueueUnavailable
from worker.heartbeat import Heartbeat

log = structlog.get_logger(__name__)


class Housekeeping:
    """Makes its rounds every ``interval`` seconds."""

    def __init__(
        self, foreman: Foreman, heartbeat: Heartbeat, tend: Callable[[], Awaitable[int]], *, interval: float
    ) -> None:
        """``tend`` looks after bulk jobs that have lost their lanes."""
        self._tend = tend
        self._foreman = foreman
        self._heartbeat = heartbeat
        self._interval = interval

    async def go_round_for_ever(self) -> None:
        """Make rounds; what fails is tried again in the next one."""
        while True:
            try:
                await self.go_round()
            except QueueUnavailable:
                log.warning("round.without_redis")
            except DatabaseUnavailable:
                log.warning("round.without_postgresql")
                self._heartbeat.falter()
            except Exception:
                log.exception("round.crashed")
            await asyncio.sleep(self._interval)

    async def go_round(self) -> None:
        """Make one round.

        Raises:
            DatabaseUnavailable, QueueUnavailable: the rest is left for the next round.
        """
        if self._heartbeat.is_steady:
            _report("jobs.rescued", await self._foreman.rescue())
            _report("bulks.tended", await self._tend())
        await self._foreman.ring_due()
        _report("rings.found_lost", await self._foreman.ring_lost())


def _report(event: str, count: int) -> None:
    if count:
        log.warning(event, count=count)
