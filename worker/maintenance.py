"""Starts and rings what is due, rescues orphans, finds lost messages, forgets what is old. All workers do; none leads.

Conditional updates and SKIP LOCKED make each round safe to run anywhere, any number of times.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from domain.errors import DatabaseUnavailable
from domain.jobs.store.retention import Pruned
from domain.jobs.transport.job_queue import QueueRefusesWrites, QueueUnavailable
from domain.maintenance_tasks import MaintenanceTask
from worker.heartbeat import Heartbeat

_PRUNE_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


class Maintenance:
    """Makes its rounds every ``interval`` seconds."""

    def __init__(
        self,
        due: Callable[[], Awaitable[Sequence[tuple[MaintenanceTask, bool]]]],
        heartbeat: Heartbeat,
        prune: Callable[[], Awaitable[Pruned]],
        *,
        interval: float,
    ) -> None:
        """``look`` tells which errands may be needed; ``prune`` forgets a little of what is old."""
        self._due = due
        self._prune = prune
        self._prune_at = time.monotonic()
        self._heartbeat = heartbeat
        self._interval = interval

    async def run_forever(self) -> None:
        """Make rounds; what fails is tried again in the next one."""
        while True:
            await self.run_once()
            await asyncio.sleep(self._interval)

    async def run_once(self) -> None:
        """Make one round; an errand that fails keeps none of the others."""
        done = 0
        for task, needed in await self._due():  # and what one has done may leave something to the next
            if (needed or done) and (self._heartbeat.is_beating or not task.requires_heartbeat):
                done += await self._step(task.event, task.run)
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
            log.debug("maintenance.redis_refuses_writes", step=event)  # the queue has said so, once and loudly
        except QueueUnavailable:
            log.warning("maintenance.redis_unavailable", step=event)
        except DatabaseUnavailable:
            log.warning("maintenance.database_unavailable", step=event)
            self._heartbeat.note_outage()
        except Exception:
            log.exception("maintenance.failed", step=event)
        else:
            if count:
                log.info(event, count=count)
        return count
