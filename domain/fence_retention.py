"""Removes the fences of volumes and snapshots that are gone for good.

A fence outlives what it belongs to, so that a late attempt does nothing. After `CISTERN_KEEP_JOBS_DAYS` no attempt is
left: its lease is long over, and its job is pruned.
"""

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import select, union_all

from domain.db.database import Database
from domain.errors import CisternError
from domain.jobs.model import Job
from domain.snapshots.model import Snapshot
from domain.storage.backends import Backends
from domain.volumes.model import Volume

_INTERVAL_SECONDS: Final = 3600.0
#: Maximum number of fences looked up in one query.
_BATCH: Final = 1000

log = structlog.get_logger(__name__)


class FenceRetention:
    """Prunes the fences of the backends that this process serves."""

    def __init__(self, database: Database, backends: Backends, *, days: int) -> None:
        """``days``: how long a fence is kept at least."""
        self._database = database
        self._backends = backends
        self._days = days

    async def run_forever(self) -> None:
        """Prune every hour; a failure is logged, and the next run tries again."""
        while True:
            try:
                if count := await self.prune():
                    log.info("fences.pruned", count=count)
            except CisternError as error:
                log.warning("fences.not_pruned", error=error.message)
            except Exception:
                log.exception("fences.not_pruned")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def prune(self) -> int:
        """Remove the old fences of what has neither a row nor a job. Returns their number."""
        count = 0
        for backend in self._backends.served():
            driver = self._backends.get(backend)
            old = await driver.old_fences(self._days)
            for start in range(0, len(old), _BATCH):
                gone = await self._gone(old[start : start + _BATCH])
                await driver.forget(gone)
                count += len(gone)
        return count

    async def _gone(self, ids: Sequence[UUID]) -> list[UUID]:
        columns = (Volume.id, Snapshot.id, Job.volume_id, Job.snapshot_id)
        known = union_all(*(select(column).where(column.in_(ids)) for column in columns))
        async with self._database.transaction() as session:
            found = set((await session.scalars(known)).all())
        return [subject_id for subject_id in ids if subject_id not in found]
