"""The states of a volume and the table of moves between them."""

import enum
from typing import Final


class VolumeState(enum.StrEnum):
    """The operation in progress on a volume, or the state in which the last one left it."""

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

#: No job holds the volume, so the next one may acquire it.
IDLE: Final = frozenset({VolumeState.AVAILABLE, VolumeState.ERROR})
BUSY: Final = frozenset(MOVES) - IDLE
