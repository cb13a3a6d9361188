"""Starts and rings what is due, rescues orphans, finds lost messages, forgets what is old. All workers do; none leads.

Conditional updates and SKIP LOCKED make each round safe to run anywhere, any number of times.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from domain.errands import Errand
from domain.errors import DatabaseUnavailable
from domain.jobs.queue import QueueRefusesWrites, QueueUnavailable
from domain.jobs.retention import Pruned
from worker.heartbeat import Heartbeat

_PRUNE_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


class Housekeeping:
    """Makes its rounds every ``interval`` seconds."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Sequence[tuple[Errand, bool]]]],
        heartbeat: Heartbeat,
        prune: Callable[[], Awaitable[Pruned]],
        *,
        interval: float,
    ) -> None:
        """``look`` tells which errands may be needed; ``prune`` forgets a little of what is old."""
        self._look = look
        self._prune = prune
        self._prune_at = time.monotonic()
        self._heartbeat = heartbeat
        self._interval = interval

    async def go_round_for_ever(self) -> None:
        """Make rounds; what fails is tried again in the next one."""
        while True:
            await self.go_round()
            await asyncio.sleep(self._interval)

    async def go_round(self) -> None:
        """Make one round; an errand that fails keeps none of the others."""
        done = 0
        for errand, needed in await self._look():  # and what one has done may leave something to the next
            if (needed or done) and (self._heartbeat.is_beating or not errand.only_while_beating):
                done += await self._step(errand.event, errand.do)
        if time.monotonic() >= self._prune_at:
            await self._step("rows.pruned", self._prune_some)

    async def _prune_some(self) -> int:
        """Forget what is old: once a minute, and in every round as long as there is more."""
        self._prune_at = time.monotonic() + _PRUNE_SECONDS
        pruned = await self._prune()
        if pruned.more:
            self._prune_at = time.monotonic()
        return pruned.rows

    async def _step(self, event: str, step: Callable[[], Awaitable[int]]) -> int:
        count = 0
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
        return count
