"""The table of samples, within one transaction; and what prunes it."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, func, literal, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.store.retention import Pruned
from domain.operations import VolumeState
from domain.volumes.history.model import Sample, VolumeSample
from domain.volumes.model import Volume

#: Maximum number of samples deleted in one transaction.
_PRUNE_BATCH: Final = 5000
#: A sample is taken if the used bytes have changed by at least this part of the size: a hundredth.
_CHANGED_PART: Final = 100


class SampleRepository:
    """The samples of volumes."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def volumes_after(self, volume_id: UUID, limit: int) -> Sequence[UUID]:
        """Return the next volumes, in the order of their ids."""
        query = select(Volume.id).where(Volume.id > volume_id).order_by(Volume.id).limit(limit)
        return (await self._session.scalars(query)).all()

    async def take(self, ids: Sequence[UUID]) -> int:
        """Take a sample of each of these volumes that differs from its last one. Returns their number.

        ``ids`` are all volumes from the first one to the last one, in order.
        """
        hour = func.date_trunc("hour", func.now(), "UTC")
        last = (
            select(VolumeSample.size, VolumeSample.used)
            .where(VolumeSample.volume_id == Volume.id)
            .order_by(VolumeSample.at.desc())
            .limit(1)
            .lateral("last")
        )
        changed = or_(
            last.c.size.is_(None),
            last.c.size != Volume.size,
            last.c.used.is_(None) != Volume.used.is_(None),
            func.abs(last.c.used - Volume.used) * _CHANGED_PART >= Volume.size,
        )
        rows = (
            select(Volume.id, hour, Volume.size, Volume.used)
            .outerjoin(last, true())
            .where(Volume.id.between(ids[0], ids[-1]), Volume.state != VolumeState.CREATING, changed)
            .order_by(Volume.id)  # two workers lock the same rows in the same order
        )
        query = insert(VolumeSample).from_select(["volume_id", "at", "size", "used"], rows)
        query = query.on_conflict_do_update(
            index_elements=["volume_id", "at"], set_={"size": query.excluded.size, "used": query.excluded.used}
        )
        return len((await self._session.scalars(query.returning(VolumeSample.volume_id))).all())

    async def of(self, volume_id: UUID, limit: int) -> Sequence[Sample]:
        """Return the newest samples of a volume, oldest first."""
        columns = (VolumeSample.at, VolumeSample.size, VolumeSample.used)
        query = select(*columns).where(VolumeSample.volume_id == volume_id).order_by(VolumeSample.at.desc())
        rows = (await self._session.execute(query.limit(limit))).all()
        return [Sample(*row) for row in reversed(rows)]


async def prune_samples(session: AsyncSession, *, age: timedelta) -> Pruned:
    """Delete a batch of samples that are older than ``age``."""
    key = tuple_(VolumeSample.volume_id, VolumeSample.at)
    old = (
        select(VolumeSample.volume_id, VolumeSample.at)
        .where(VolumeSample.at < func.now() - literal(age))
        .limit(_PRUNE_BATCH)
        .with_for_update(skip_locked=True)
    )
    query = delete(VolumeSample).where(key.in_(old)).returning(VolumeSample.at)
    rows = len((await session.scalars(query.execution_options(synchronize_session=False))).all())
    return Pruned(rows, more=rows == _PRUNE_BATCH)
