"""Runs the maintenance tasks periodically: dispatch due jobs, re-dispatch lost messages, rescue, schedules, pruning.

Every worker runs them and there is no leader: each task is a conditional update with SKIP LOCKED, and is safe to run
anywhere, any number of times, concurrently.
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
    """Runs the due maintenance tasks every ``interval`` seconds."""

    def __init__(
        self,
        due: Callable[[], Awaitable[Sequence[tuple[MaintenanceTask, bool]]]],
        heartbeat: Heartbeat,
        prune: Callable[[], Awaitable[Pruned]],
        *,
        interval: float,
    ) -> None:
        """Prepare the loop.

        Args:
            due: Returns each task and whether it may have work.
            heartbeat: Shows and records whether PostgreSQL is available.
            prune: Deletes one batch of expired rows.
            interval: Seconds between two runs.
        """
        self._due = due
        self._prune = prune
        self._prune_at = time.monotonic()
        self._heartbeat = heartbeat
        self._interval = interval

    async def run_forever(self) -> None:
        """Run the tasks periodically; one that fails is retried in the next run."""
        while True:
            await self.run_once()
            await asyncio.sleep(self._interval)

    async def run_once(self) -> None:
        """Run the due tasks once; the failure of one does not affect the others."""
        processed = 0
        for task, needed in await self._due():
            # A task that processed rows may have made work for the later ones.
            if (needed or processed) and (self._heartbeat.is_beating or not task.requires_heartbeat):
                processed += await self._run_step(task.event, task.run)
        if time.monotonic() >= self._prune_at:
            await self._run_step("rows.pruned", self._prune_batch)

    async def _prune_batch(self) -> int:
        """Delete expired rows: once a minute, and in every run as long as there are more."""
        self._prune_at = time.monotonic() + _PRUNE_SECONDS
        pruned = await self._prune()
        if pruned.more:
            self._prune_at = time.monotonic()
        return pruned.rows

    async def _run_step(self, event: str, step: Callable[[], Awaitable[int]]) -> int:
        count = 0
        try:
            count = await step()
        except QueueRefusesWrites:
            log.debug("maintenance.redis_refuses_writes", step=event)  # the queue has logged it once, as an error
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
