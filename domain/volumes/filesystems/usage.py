"""How much of a volume is in use, as growth is decided by it.

A volume without a file system is measured on its backend, by its blocks. The blocks of a file system say little: those
that were written once stay allocated when files are deleted. So what counts is what the node reports that has mounted
it. While the volume is attached, an old report says nothing; afterwards the last one stays true, since nobody writes.
"""

from datetime import timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, case, exists, func, null, or_

from domain.db.sql import from_now
from domain.volumes.attachments.model import Attachment
from domain.volumes.model import Volume

#: Older reports of a node do not count while the volume is attached.
MAX_REPORT_AGE_SECONDS: Final = 300.0


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
    """Return the condition that a volume has a holder, or is about to have one."""
    return exists().where(Attachment.volume_id == Volume.id).correlate(Volume)


def usage_columns() -> list[ColumnElement[Any]]:
    """Return the columns of a query on volumes that are the members of a `VolumeUsage`."""
    is_late = and_(
        Volume.filesystem.is_not(None),
        or_(Volume.used_at.is_(None), Volume.used_at < from_now(-MAX_REPORT_AGE_SECONDS)),
        is_attached(),
    )
    counted = [case((is_late, null()), else_=one) for one in (Volume.used, Volume.inodes, Volume.inodes_used)]
    names = ("counted_used", "counted_inodes", "counted_inodes_used")
    labelled = [one.label(name) for one, name in zip(counted, names, strict=True)]
    return [*labelled, (func.now() - Volume.grown_at).label("grown_ago"), Volume.used_at.is_(None).label("is_new")]
