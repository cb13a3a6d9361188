"""Repairs rows, each in one short transaction that first verifies that the row has not changed since it was read."""

import math
from collections.abc import Collection
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.check.compare import is_valid_size, resting_state
from domain.check.findings import CheckCode
from domain.check.rows import Holder, RowState
from domain.db.database import Database
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.operations import SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.storage.backends import Backends
from domain.storage.context import Fence, Grant
from domain.storage.driver import StoredObject, StoredVolume
from domain.volumes.model import Volume

_RECOVERED_NAME: Final = "recovered-{}"


class Repair:
    """Repairs the rows of volumes and snapshots. Each method returns False if the row has changed since it was read."""

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    async def repair_row(
        self, row: RowState, backend: str, stored: StoredObject | None, codes: Collection[CheckCode]
    ) -> bool:
        """Repair all findings about one row at once.

        Raises:
            StorageError: earlier attempts could not be fenced off; the row is unchanged.
        """
        if CheckCode.NO_JOB in codes:
            return await self._bring_to_rest(row, backend, stored)
        version = _version_above(row, stored)
        async with self._database.transaction() as session:
            job, locked = await _lock_unleased_holder(session, row.holder), await _lock(session, row)
            if locked is None or (job is None and _has_fence_in_params(row)):
                return False
            if job is not None:
                job.params, job.version = job.params | {"fence_version": version}, job.version + 1
            _raise_version(locked, version)
            if CheckCode.DATA_MISSING in codes:
                locked.state = _error_state(locked)
            if CheckCode.SIZE_DIFFERS in codes and stored is not None and stored.size is not None:
                locked.size = stored.size
        return True

    async def adopt_volume(self, volume_id: UUID, backend: str, stored: StoredVolume) -> bool:
        """Add a row for data that has none, so that it can be used again; also for its snapshots."""
        async with self._database.transaction() as session:
            columns = {
                "name": _RECOVERED_NAME.format(volume_id),
                "backend": backend,
                "labels": {},
                "state": VolumeState.AVAILABLE,
            }
            adopting = insert(Volume).values(id=volume_id, **columns, **_size_and_version(stored.volume))
            adopted = await session.scalar(adopting.on_conflict_do_nothing().returning(Volume.id))
            if adopted is not None:
                for snapshot_id, stored_snapshot in stored.snapshots.items():
                    await _add_snapshot(session, volume_id, snapshot_id, stored_snapshot)
        return adopted is not None

    async def adopt_snapshot(self, volume: RowState, snapshot_id: UUID, stored: StoredObject) -> bool:
        """Add a row for a snapshot that has none, if its volume's row is unchanged."""
        async with self._database.transaction() as session:
            if await _lock(session, volume) is None:
                return False
            return await _add_snapshot(session, volume.id, snapshot_id, stored)

    async def _bring_to_rest(self, row: RowState, backend: str, stored: StoredObject | None) -> bool:
        """Fence off any earlier attempts, then set the state that follows from the data they have left."""
        version = _version_above(row, stored)
        size = await self._seal(row, backend, version)
        async with self._database.transaction() as session:
            locked = await _lock(session, row)
            if locked is None:
                return False
            _raise_version(locked, version + 1)
            locked.state = resting_state(row, size, stores_sizes=stored is not None)
            locked.job_id = None
            if size is not None and is_valid_size(size):
                locked.size = size
        return True

    async def _seal(self, row: RowState, backend: str, version: int) -> int | None:
        if backend not in self._backends:
            return None
        driver, grant = self._backends.get(backend), Grant(uuid7(), Fence(version, 0), math.inf)
        if row.is_volume:
            return await driver.seal(row.id, grant)
        return await driver.seal_snapshot(row.volume_id, row.id, grant)


def _version_above(row: RowState, stored: StoredObject | None) -> int:
    """Return a version above the row's and above every published fence."""
    fence = stored.fence if stored is not None else None
    return max(row.version, fence.version if fence else 0) + 1


async def _lock(session: AsyncSession, row: RowState) -> Volume | Snapshot | None:
    """Lock a row; return None if it has changed since it was read."""
    model = Volume if row.is_volume else Snapshot
    query = select(model).where(model.id == row.id, model.version == row.version).with_for_update()
    locked: Volume | Snapshot | None = await session.scalar(query)
    return locked if locked is not None and (locked.state, locked.job_id) == (row.state, row.job_id) else None


async def _lock_unleased_holder(session: AsyncSession, holder: Holder | None) -> Job | None:
    """Lock the job whose parameters contain the fence; return None if there is none, or a worker has claimed it."""
    if holder is None or not holder.fence_in_params or holder.leased:
        return None
    job = await JobRepository(session).get_for_update(holder.job_id)
    return job if job is not None and job.version == holder.version else None


def _has_fence_in_params(row: RowState) -> bool:
    return row.holder is not None and row.holder.fence_in_params


async def _add_snapshot(session: AsyncSession, volume_id: UUID, snapshot_id: UUID, stored: StoredObject) -> bool:
    if not is_valid_size(stored.size):
        return False
    columns = {"volume_id": volume_id, "name": _RECOVERED_NAME.format(snapshot_id), "state": SnapshotState.READY}
    adding = insert(Snapshot).values(id=snapshot_id, **columns, **_size_and_version(stored))
    return await session.scalar(adding.on_conflict_do_nothing().returning(Snapshot.id)) is not None


def _size_and_version(stored: StoredObject) -> dict[str, int | None]:
    return {"size": stored.size, "version": stored.fence.version + 1 if stored.fence else 1}


def _raise_version(row: Volume | Snapshot, version: int) -> None:
    row.version = version
    row.updated_at = func.now()


def _error_state(row: Volume | Snapshot) -> VolumeState | SnapshotState:
    return VolumeState.ERROR if isinstance(row, Volume) else SnapshotState.ERROR
