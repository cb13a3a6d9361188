"""Runs the maintenance tasks periodically: dispatch due jobs, re-dispatch lost messages, rescue, schedules; and prunes.

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
from domain.tasks import in_background
from worker.heartbeat import Heartbeat

#: Interval from the start of one deletion of expired rows to that of the next, and its maximum duration.
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
            prune: Deletes some batches of expired rows.
            interval: Seconds between two runs.
        """
        self._due = due
        self._prune = prune
        self._heartbeat = heartbeat
        self._interval = interval

    async def run_forever(self) -> None:
        """Run the tasks periodically, and prune beside them; what fails is tried again in the next run."""
        async with in_background(self.prune_forever()):
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

    async def prune_forever(self) -> None:
        """Begin once a minute to delete expired rows; a run that takes the whole minute is followed by the next."""
        while True:
            next_at = time.monotonic() + _PRUNE_SECONDS
            await self._run_step("rows.pruned", self._prune_for_a_minute)
            await asyncio.sleep(max(next_at - time.monotonic(), 0))

    async def _prune_for_a_minute(self) -> int:
        """Delete expired rows until none is left, for up to a minute.

        A pause after some batches is as long as they took, so that one connection is in use half of the time.
        docs/scale.md says how many jobs per second that are.
        """
        rows, ends_at = 0, time.monotonic() + _PRUNE_SECONDS
        while True:
            began_at = time.monotonic()
            pruned = await self._prune()
            rows += pruned.rows
            if not pruned.more or time.monotonic() >= ends_at:
                return rows
            await asyncio.sleep(time.monotonic() - began_at)

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
