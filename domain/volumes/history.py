"""The history of volumes: their sizes and used bytes, one sample for each hour in which they have changed.

Workers take the samples independently of jobs, so that no operation waits for them. Any number of workers may take them
at once. The sample of the current hour is replaced until the hour is over.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Index, Select, delete, func, literal, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base
from domain.db.database import Database
from domain.errors import CisternError
from domain.jobs.store.retention import Pruned
from domain.operations import VolumeState
from domain.volumes.model import Volume

#: Time between two runs, in seconds.
_INTERVAL_SECONDS: Final = 600.0
#: Maximum number of volumes read, or of samples deleted, in one transaction.
_BATCH: Final = 5000
#: A sample is taken if the used bytes have changed by at least this part of the size: a hundredth.
_CHANGED_PART: Final = 100
#: Maximum number of samples that are returned: a month has 744 hours.
MAX_SAMPLES: Final = 2000
_NO_ID: Final = UUID(int=0)

log = structlog.get_logger(__name__)


class VolumeSample(Base):
    """The size and the used bytes of a volume in an hour."""

    __tablename__ = "volume_samples"
    # Rows are added in the order of time, so that a BRIN index finds the old ones, and is very small.
    __table_args__ = (Index("volume_samples_at_idx", "at", postgresql_using="brin"),)

    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: The beginning of the hour, in UTC.
    at: Mapped[datetime] = mapped_column(primary_key=True)
    size: Mapped[int]
    #: None if they were not measured.
    used: Mapped[int | None]


class Sample(NamedTuple):
    """The size and the used bytes of a volume at a time."""

    at: datetime
    size: int
    used: int | None


class VolumeHistory:
    """Takes the samples of all volumes, and reads those of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run_forever(self) -> None:
        """Take samples every ten minutes; a failure is logged, and the next run tries again."""
        while True:
            try:
                await self.take_samples()
            except CisternError as error:
                log.warning("history.not_taken", error=error.message)
            except Exception:
                log.exception("history.not_taken")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def take_samples(self) -> int:
        """Take a sample of each volume that has changed since its last one. Returns their number.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        count, after = 0, _NO_ID
        while True:
            async with self._database.transaction() as session:
                ids = (await session.scalars(_ids_after(after))).all()
                if not ids:
                    return count
                count += await _take_of(session, ids)
            after = ids[-1]

    async def samples_of(self, volume_id: UUID) -> Sequence[Sample]:
        """Return the samples of a volume, oldest first; the newest `MAX_SAMPLES` if there are more.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        columns = (VolumeSample.at, VolumeSample.size, VolumeSample.used)
        query = select(*columns).where(VolumeSample.volume_id == volume_id).order_by(VolumeSample.at.desc())
        async with self._database.transaction() as session:
            rows = (await session.execute(query.limit(MAX_SAMPLES))).all()
        return [Sample(*row) for row in reversed(rows)]


async def prune_samples(session: AsyncSession, *, age: timedelta) -> Pruned:
    """Delete a batch of samples that are older than ``age``."""
    key = tuple_(VolumeSample.volume_id, VolumeSample.at)
    old = (
        select(VolumeSample.volume_id, VolumeSample.at)
        .where(VolumeSample.at < func.now() - literal(age))
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    query = delete(VolumeSample).where(key.in_(old)).returning(VolumeSample.at)
    rows = len((await session.scalars(query.execution_options(synchronize_session=False))).all())
    return Pruned(rows, more=rows == _BATCH)


def _ids_after(volume_id: UUID) -> Select[UUID]:
    return select(Volume.id).where(Volume.id > volume_id).order_by(Volume.id).limit(_BATCH)


async def _take_of(session: AsyncSession, ids: Sequence[UUID]) -> int:
    """Take a sample of each of these volumes that differs from its last one. Returns their number."""
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
    return len((await session.scalars(query.returning(VolumeSample.volume_id))).all())
