"""Mends rows, each in one short transaction that first makes sure that nothing has moved since it was looked at."""

import math
from collections.abc import Collection
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.check.compare import fits, resting_state
from domain.check.findings import CheckCode
from domain.check.rows import Holder, RowState
from domain.db.database import Database
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.snapshots.model import Snapshot
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.storage.context import Fence, Grant
from domain.storage.driver import StoredObject, StoredVolume
from domain.volumes.model import Volume
from domain.volumes.states import VolumeState

_NAME: Final = "recovered-{}"


class Repair:
    """The hand that mends rows; each method tells whether it has, and False means that the row has moved."""

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    async def repair(
        self, seen: RowState, backend: str, stored: StoredObject | None, codes: Collection[CheckCode]
    ) -> bool:
        """Mend everything about one row at once.

        Raises:
            StorageError: earlier attempts could not be shut out, so the row is as it was.
        """
        if CheckCode.NO_JOB in codes:
            return await self._settle_state(seen, backend, stored)
        above = _above(seen, stored)
        async with self._database.transaction() as session:
            job, row = await _waiting(session, seen.hold), await _lock(session, seen)
            if row is None or (job is None and _names_fence(seen)):
                return False
            if job is not None:
                job.params, job.version = job.params | {"fence": above}, job.version + 1
            _raise(row, above)
            if CheckCode.DATA_MISSING in codes:
                row.state = _error(row)
            if CheckCode.SIZE_DIFFERS in codes and stored is not None and stored.size is not None:
                row.size = stored.size
        return True

    async def adopt_volume(self, volume_id: UUID, backend: str, sighting: StoredVolume) -> bool:
        """Write a row for data that has none, so that it can be reached again; its snapshots too."""
        async with self._database.transaction() as session:
            row = {"name": _NAME.format(volume_id), "backend": backend, "labels": {}, "state": VolumeState.AVAILABLE}
            adopting = insert(Volume).values(id=volume_id, **row, **_measured(sighting.volume))
            adopted = await session.scalar(adopting.on_conflict_do_nothing().returning(Volume.id))
            if adopted is not None:
                for snapshot_id, stored in sighting.snapshots.items():
                    await _add_snapshot(session, volume_id, snapshot_id, stored)
        return adopted is not None

    async def adopt_snapshot(self, of_volume: RowState, snapshot_id: UUID, stored: StoredObject) -> bool:
        """Write a row for a snapshot that has none, if its volume is as it was."""
        async with self._database.transaction() as session:
            if await _lock(session, of_volume) is None:
                return False
            return await _add_snapshot(session, of_volume.id, snapshot_id, stored)

    async def _settle_state(self, seen: RowState, backend: str, stored: StoredObject | None) -> bool:
        """Shut out whatever attempts there may have been, and go the way out with what they have left."""
        above = _above(seen, stored)
        size = await self._seal(seen, backend, above)
        async with self._database.transaction() as session:
            row = await _lock(session, seen)
            if row is None:
                return False
            _raise(row, above + 1)
            row.state = resting_state(seen, size, knows_sizes=stored is not None)
            row.job_id = None
            if size is not None and fits(size):
                row.size = size
        return True

    async def _seal(self, seen: RowState, backend: str, version: int) -> int | None:
        if backend not in self._backends:
            return None
        driver, grant = self._backends.get(backend), Grant(uuid7(), Fence(version, 0), math.inf)
        if seen.is_volume:
            return await driver.seal(seen.id, grant)
        return await driver.seal_snapshot(seen.volume_id, seen.id, grant)


def _above(seen: RowState, stored: StoredObject | None) -> int:
    """Find a version above the row's and everything that was published."""
    fence = stored.fence if stored is not None else None
    return max(seen.version, fence.version if fence else 0) + 1


async def _lock(session: AsyncSession, seen: RowState) -> Volume | Snapshot | None:
    """Keep others from changing a row; None if somebody has, since it was looked at."""
    model = Volume if seen.is_volume else Snapshot
    query = select(model).where(model.id == seen.id, model.version == seen.version).with_for_update()
    row: Volume | Snapshot | None = await session.scalar(query)
    return row if row is not None and (row.state, row.job_id) == (seen.state, seen.job_id) else None


async def _waiting(session: AsyncSession, hold: Holder | None) -> Job | None:
    """Keep others from changing the job that names the fence; None if there is none, or it waits no more."""
    if hold is None or not hold.named or hold.leased:
        return None
    job = await JobRepository(session).get_for_update(hold.job_id)
    return job if job is not None and job.version == hold.version else None


def _names_fence(seen: RowState) -> bool:
    return seen.hold is not None and seen.hold.named


async def _add_snapshot(session: AsyncSession, volume_id: UUID, snapshot_id: UUID, stored: StoredObject) -> bool:
    if not fits(stored.size):
        return False
    row = {"volume_id": volume_id, "name": _NAME.format(snapshot_id), "state": SnapshotState.READY}
    adding = insert(Snapshot).values(id=snapshot_id, **row, **_measured(stored))
    return await session.scalar(adding.on_conflict_do_nothing().returning(Snapshot.id)) is not None


def _measured(stored: StoredObject) -> dict[str, int | None]:
    return {"size": stored.size, "version": stored.fence.version + 1 if stored.fence else 1}


def _raise(row: Volume | Snapshot, version: int) -> None:
    row.version = version
    row.updated_at = func.now()


def _error(row: Volume | Snapshot) -> VolumeState | SnapshotState:
    return VolumeState.ERROR if isinstance(row, Volume) else SnapshotState.ERROR
