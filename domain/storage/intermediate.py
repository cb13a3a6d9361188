"""The intermediate snapshot, of which a clone of a volume is made.

It has no row: the job of the clone takes it and deletes it. Its id follows from that of the clone, so that every
attempt at the clone finds it, and `cistern check` knows it from the snapshots that users have taken.
"""

from typing import Final
from uuid import UUID

#: Ids of rows have the version 7, those of intermediate snapshots the version 8; the other bits are the clone's.
_VERSIONS: Final = (7 ^ 8) << 76
_VERSION: Final = 8


def intermediate_of(clone_id: UUID) -> UUID:
    """Return the id of the intermediate snapshot of a clone."""
    return UUID(int=clone_id.int ^ _VERSIONS)


def is_intermediate(snapshot_id: UUID) -> bool:
    """Return whether a stored snapshot is an intermediate one."""
    return snapshot_id.version == _VERSION
