"""Rings what is due, rescues what was orphaned, finds lost messages. Every worker does so; none leads.

Conditional updates and SKIP LOCKED make each round safe to run anywhere, any number of times.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from domain.errors import DatabaseUnavailable
from domain.jobs.foreman import Foreman
from domain.jobs.queue import QueueRefusesWrites, QueueUnavailable
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
            await self.go_round()
            await asyncio.sleep(self._interval)

    async def go_round(self) -> None:
        """Make one round; a step that fails keeps none of the others."""
        if self._heartbeat.is_steady:
            await self._step("jobs.rescued", self._foreman.rescue)
            await self._step("bulks.tended", self._tend)
        await self._step("rings.due", self._foreman.ring_due)
        await self._step("rings.found_lost", self._foreman.ring_lost)

    async def _step(self, event: str, step: Callable[[], Awaitable[int]]) -> None:
        try:
            count = await step()
        except QueueRefusesWrites:
            log.debug("round.refused", step=event)  # the queue has said so, once and loudly
        except QueueUnavailable:
            log.warning("round.without_redis", step=event)
        except DatabaseUnavailable:
            log.warning("round.without_postgresql", step=event)
            self._heartbeat.falter()
        except Exception:
            log.exception("round.crashed", step=event)
        else:
            if count:
                log.info(event, count=count)
