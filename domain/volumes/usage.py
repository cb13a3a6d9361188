"""How much of a volume is in use, as growth is decided by it.

A volume without a file system is measured on its backend, by its blocks. The blocks of a file system say little: those
that were written once stay allocated when files are deleted. So what counts is what the node reports that has mounted
it. While the volume is attached, an old report says nothing; afterwards the last one stays true, since nobody writes.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, exists, func, null, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.volumes.attachments.model import Attachment
from domain.volumes.model import Volume

#: How old the report of a node may be while the volume is attached.
REPORT_SECONDS: Final = 300.0


class VolumeUsage(NamedTuple):
    """What is known of the use of a volume; None: it is not known, or does not count any more."""

    used: int | None = None
    inodes: int | None = None
    inodes_used: int | None = None
    #: How long ago an expansion has made it larger; None: none has.
    grown_ago: timedelta | None = None
    #: Whether nobody has measured it, or reported on it, yet.
    is_new: bool = True


def is_attached() -> ColumnElement[bool]:
    """Return the condition that somebody has a volume, or is about to."""
    return exists().where(Attachment.volume_id == Volume.id).correlate(Volume)


def usage_columns() -> list[ColumnElement[Any]]:
    """Return the columns of a query on volumes that are the members of a `VolumeUsage`."""
    is_late = and_(
        Volume.filesystem.is_not(None),
        or_(Volume.used_at.is_(None), Volume.used_at < from_now(-REPORT_SECONDS)),
        is_attached(),
    )
    counted = [case((is_late, null()), else_=one) for one in (Volume.used, Volume.inodes, Volume.inodes_used)]
    names = ("counted_used", "counted_inodes", "counted_inodes_used")
    labelled = [one.label(name) for one, name in zip(counted, names, strict=True)]
    return [*labelled, (func.now() - Volume.grown_at).label("grown_ago"), Volume.used_at.is_(None).label("is_new")]


async def usage_of(session: AsyncSession, volume_ids: Collection[UUID]) -> dict[UUID, VolumeUsage]:
    """Return what the rows of volumes say of their use."""
    query = select(Volume.id, *usage_columns()).where(Volume.id.in_(volume_ids))
    return {row[0]: VolumeUsage(*row[1:]) for row in await session.execute(query)}


async def not_attached(session: AsyncSession, volume_ids: Collection[UUID]) -> set[UUID]:
    """Return those of these volumes that nobody has. It stays true while a job holds them, and they are locked."""
    query = select(Volume.id).where(Volume.id.in_(volume_ids), ~is_attached())
    return set((await session.scalars(query)).all())
