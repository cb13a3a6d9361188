"""The states of a volume and the moves between them, as a table."""

import enum
from typing import Final


class VolumeState(enum.StrEnum):
    """What is going on with a volume."""

    CREATING = "creating"
    AVAILABLE = "available"
    EXPANDING = "expanding"
    SNAPSHOTTING = "snapshotting"
    RESTORING = "restoring"
    DELETING = "deleting"
    ERROR = "error"


_BACK: Final = frozenset({VolumeState.AVAILABLE})

MOVES: Final[dict[VolumeState, frozenset[VolumeState]]] = {
    VolumeState.CREATING: frozenset({VolumeState.AVAILABLE, VolumeState.ERROR}),
    VolumeState.AVAILABLE: frozenset(
        {VolumeState.EXPANDING, VolumeState.SNAPSHOTTING, VolumeState.RESTORING, VolumeState.DELETING}
    ),
    VolumeState.EXPANDING: _BACK,
    VolumeState.SNAPSHOTTING: _BACK,
    VolumeState.RESTORING: _BACK,
    VolumeState.DELETING: frozenset({VolumeState.ERROR}),
    VolumeState.ERROR: frozenset({VolumeState.CREATING, VolumeState.DELETING}),
}

#: At rest: no job has the volume, so the next one may take it.
IDLE: Final = frozenset({VolumeState.AVAILABLE, VolumeState.ERROR})
BUSY: Final = frozenset(MOVES) - IDLE
