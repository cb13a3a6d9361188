"""The states of a snapshot and the moves between them, as a table."""

import enum
from typing import Final


class SnapshotState(enum.StrEnum):
    """What is going on with a snapshot."""

    TAKING = "taking"
    READY = "ready"
    RESTORING = "restoring"
    CLONING = "cloning"
    DELETING = "deleting"
    ERROR = "error"


MOVES: Final[dict[SnapshotState, frozenset[SnapshotState]]] = {
    SnapshotState.TAKING: frozenset({SnapshotState.READY, SnapshotState.ERROR}),
    SnapshotState.READY: frozenset({SnapshotState.RESTORING, SnapshotState.CLONING, SnapshotState.DELETING}),
    SnapshotState.RESTORING: frozenset({SnapshotState.READY}),
    # Any number of clones may be made at once; the last one brings it back to rest.
    SnapshotState.CLONING: frozenset({SnapshotState.CLONING, SnapshotState.READY}),
    SnapshotState.DELETING: frozenset({SnapshotState.ERROR}),
    SnapshotState.ERROR: frozenset({SnapshotState.TAKING, SnapshotState.DELETING}),
}

#: At rest: no job has the snapshot.
IDLE: Final = frozenset({SnapshotState.READY, SnapshotState.ERROR})
BUSY: Final = frozenset(MOVES) - IDLE
