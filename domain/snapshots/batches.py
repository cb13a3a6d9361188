"""What bulk jobs ask of the table of snapshots; each takes a whole chunk. Takes a session, never commits.

Of each volume that a bulk job has in its hands it has at most one snapshot, so the volume says which.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, and_, delete, func, insert, literal, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import given_rows
from domain.snapshots.model import Snapshot
from domain.snapshots.policy import Keep
from domain.snapshots.states import SnapshotState

#: States of a snapshot that can be used, if not at this very moment.
_WHOLE: Final = (SnapshotState.READY, SnapshotState.RESTORING, SnapshotState.CLONING)


class SnapshotBatchRepository:
    """Many snapshots of many volumes, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def named(self, volume_ids: Collection[UUID], name: str) -> set[UUID]:
        """Tell which of these volumes have a snapshot of that name; with their rows locked, it stays true."""
        query = select(Snapshot.volume_id).where(Snapshot.volume_id.in_(volume_ids), Snapshot.name == name)
        return set((await self._session.scalars(query)).all())

    async def add(self, snapshots: Sequence[Snapshot]) -> None:
        """Write new snapshots; their names must be free."""
        if snapshots:
            names = ("id", "volume_id", "name", "state", "size", "version", "job_id", "schedule_id")
            rows = [{name: getattr(snapshot, name) for name in names} for snapshot in snapshots]
            await self._session.execute(insert(Snapshot), rows)

    async def held(self, volume_ids: Collection[UUID], job_id: UUID) -> dict[UUID, tuple[UUID, int]]:
        """Tell which snapshots of these volumes a bulk job has, by volume: their ids and versions."""
        query = select(Snapshot.volume_id, Snapshot.id, Snapshot.version).where(_of(volume_ids, job_id))
        return {row.volume_id: (row.id, row.version) for row in await self._session.execute(query)}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Raise the versions of snapshots that a bulk job has, as is done with those of volumes."""
        query = update(Snapshot).where(_of(volume_ids, job_id)).values(version=Snapshot.version + 1)
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def discard(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Strike off snapshots that a bulk job has meant to take, and of which nothing is there."""
        query = delete(Snapshot).where(_of(volume_ids, job_id))
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def superfluous(self, volume_ids: Collection[UUID], schedule_id: UUID, keep: Keep) -> Sequence[Snapshot]:
        """Lock a schedule's own snapshots that it does not keep; those that are in use wait for the next time."""
        newest = (Snapshot.created_at.desc(), Snapshot.id.desc())
        own = (
            select(Snapshot.id, func.row_number().over(partition_by=Snapshot.volume_id, order_by=newest).label("rank"))
            .where(Snapshot.volume_id.in_(volume_ids), Snapshot.schedule_id == schedule_id, Snapshot.state.in_(_WHOLE))
            .subquery()
        )
        beyond = select(own.c.id).where(own.c.rank > max(keep.last or 0, 1))
        query = select(Snapshot).where(Snapshot.id.in_(beyond), Snapshot.state == SnapshotState.READY, _too_old(keep))
        return (await self._session.scalars(query.order_by(Snapshot.id).with_for_update(skip_locked=True))).all()

    async def take(self, job_ids: Mapping[UUID, UUID], state: SnapshotState) -> None:
        """Give locked snapshots into the hands of a job each."""
        rows = ({"snapshot_id": snapshot_id, "job_id": job_id} for snapshot_id, job_id in job_ids.items())
        given = given_rows(rows, snapshot_id=Uuid(), job_id=Uuid())
        query = (
            update(Snapshot)
            .where(Snapshot.id == given.c.snapshot_id)
            .values(state=state, job_id=given.c.job_id, version=Snapshot.version + 1, updated_at=func.now())
        )
        await self._session.execute(query.execution_options(synchronize_session=False))


def _of(volume_ids: Collection[UUID], job_id: UUID) -> ColumnElement[bool]:
    return and_(Snapshot.volume_id.in_(volume_ids), Snapshot.job_id == job_id)


def _too_old(keep: Keep) -> ColumnElement[bool]:
    if keep.days is None:
        return true()
    return Snapshot.created_at < func.now() - literal(timedelta(days=keep.days))
