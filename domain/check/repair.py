"""Repairs rows, each in one short transaction that first verifies that the row has not changed since it was read."""

import math
from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.audit.repository import project_of_created
from domain.check.findings import CheckCode
from domain.check.rows import RowState
from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.operations import BUSY, SNAPSHOT_MOVES, VOLUME_MOVES, SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.storage.backends import Backends
from domain.storage.checked import is_stored_size
from domain.storage.context import Fence, Grant
from domain.storage.driver import Leftover, StoredObject, StoredVolume
from domain.storage.errors import SizeImpossible
from domain.storage.intermediate import is_intermediate
from domain.volumes.model import Volume


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
        version, holder, job = _version_above(row, stored), row.holder, None
        async with self._database.transaction() as session:
            if holder is not None and holder.fence_in_params:
                job = await JobRepository(session).get_for_update(holder.job_id)
                if job is None or job.version != holder.version:
                    return False
            locked = await _lock(session, row)
            if locked is None:
                return False
            if job is not None:
                job.params, job.version = job.params | {"fence_version": version}, job.version + 1
            locked.version = version
            if CheckCode.DATA_MISSING in codes:
                locked.state = type(row.state).ERROR
            if CheckCode.SIZE_DIFFERS in codes and stored is not None and stored.size is not None:
                locked.size = stored.size
        return True

    async def adopt_volume(self, volume_id: UUID, backend: str, stored: StoredVolume) -> bool:
        """Add a row for data that has none, so that it can be used again; also for its snapshots.

        The storage does not know the project. If nothing else does either, it is the default one, whose keys then see
        the data of any project.
        """
        async with self._database.transaction() as session:
            project_id = await _project_of(session, volume_id) or DEFAULT_PROJECT
            columns = {"backend": backend, "labels": {}, "state": VolumeState.AVAILABLE, "project_id": project_id}
            adopted = await _insert(session, Volume, volume_id, stored.volume, **columns)
            if adopted:
                for snapshot_id, stored_snapshot in stored.snapshots.items():
                    if is_intermediate(snapshot_id):
                        continue  # the next check finds it as a leftover of the volume
                    await _insert_snapshot(session, project_id, volume_id, snapshot_id, stored_snapshot)
        return adopted

    async def adopt_snapshot(self, volume: RowState, snapshot_id: UUID, stored: StoredObject) -> bool:
        """Add a row for a snapshot that has none, if its volume's row is unchanged."""
        async with self._database.transaction() as session:
            locked = await _lock(session, volume)
            if locked is None:
                return False
            return await _insert_snapshot(session, locked.project_id, volume.id, snapshot_id, stored)

    async def remove_intermediate(self, volume_id: UUID, backend: str, snapshot_id: UUID, stored: StoredObject) -> bool:
        """Delete an intermediate snapshot; no row is concerned.

        The fence is above those of the job that has left it, and below that of its retry, which may have begun.
        """
        fence = Fence(stored.fence.version + 1 if stored.fence else 0, 0)
        await self._backends.get(backend).delete_snapshot(volume_id, snapshot_id, Grant(uuid7(), fence, math.inf))
        return True

    async def sweep(self, volume_id: UUID, backend: str, leftovers: Collection[Leftover]) -> bool:
        """Remove leftovers from the storage; no row is concerned."""
        await self._backends.get(backend).sweep(volume_id, leftovers)
        return True

    async def _bring_to_rest(self, row: RowState, backend: str, stored: StoredObject | None) -> bool:
        """Fence off any earlier attempts, then set the state that follows from the data they have left."""
        version = _version_above(row, stored)
        size = await self._seal(row, backend, version)
        async with self._database.transaction() as session:
            locked = await _lock(session, row)
            if locked is None:
                return False
            locked.version = version + 1
            locked.state = _resting_state(row, size, stores_sizes=stored is not None)
            locked.job_id = None
            if isinstance(locked, Volume):
                locked.growing_to = None
            if size is not None:
                locked.size = size
        return True

    async def _seal(self, row: RowState, backend: str, version: int) -> int | None:
        driver, grant = self._backends.get(backend), Grant(uuid7(), Fence(version, 0), math.inf)
        try:
            if row.is_volume:
                return await driver.seal(row.id, grant)
            return await driver.seal_snapshot(row.volume_id, row.id, grant)
        except SizeImpossible:  # it is sealed, and the next check reports the size that its data has
            return row.size


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


def _resting_state(row: RowState, size: int | None, *, stores_sizes: bool) -> VolumeState | SnapshotState:
    """Return the state for a row without a job, given the stored size; without data it is never usable."""
    error = type(row.state).ERROR
    if stores_sizes and size is None:
        return error
    if row.state not in BUSY:
        return row.state
    # An operation that may end in `error` may have stopped halfway; any other leaves its subject usable at every step.
    if isinstance(row.state, VolumeState):
        return error if error in VOLUME_MOVES[row.state] else VolumeState.AVAILABLE
    return error if error in SNAPSHOT_MOVES[row.state] else SnapshotState.READY


async def _project_of(session: AsyncSession, volume_id: UUID) -> UUID | None:
    """Return the project of a volume without a row, by its last job, or by the audit entry of its creation."""
    of_jobs = select(Job.project_id).where(Job.volume_id == volume_id).order_by(Job.id.desc()).limit(1)
    return await session.scalar(of_jobs) or await project_of_created(session, volume_id)


async def _insert_snapshot(
    session: AsyncSession, project_id: UUID, volume_id: UUID, snapshot_id: UUID, stored: StoredObject
) -> bool:
    columns = {"project_id": project_id, "volume_id": volume_id, "state": SnapshotState.READY}
    return is_stored_size(stored.size) and await _insert(session, Snapshot, snapshot_id, stored, **columns)


async def _insert(
    session: AsyncSession, model: type[Volume | Snapshot], id_: UUID, stored: StoredObject, **columns: Any
) -> bool:
    version = stored.fence.version + 1 if stored.fence else 1
    name = f"recovered-{id_}"
    inserting = insert(model).values(id=id_, name=name, size=stored.size, version=version, **columns)
    return await session.scalar(inserting.on_conflict_do_nothing().returning(model.id)) is not None
