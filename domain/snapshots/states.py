"""The states of a snapshot and the table of moves between them."""

import enum
from typing import Final


class SnapshotState(enum.StrEnum):
    """The operation in progress on a snapshot, or the state in which the last one left it."""

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
    # Clones may run concurrently; the last one to end moves the snapshot back to ready.
    SnapshotState.CLONING: frozenset({SnapshotState.CLONING, SnapshotState.READY}),
    SnapshotState.DELETING: frozenset({SnapshotState.ERROR}),
    SnapshotState.ERROR: frozenset({SnapshotState.TAKING, SnapshotState.DELETING}),
}

#: No job holds the snapshot.
IDLE: Final = frozenset({SnapshotState.READY, SnapshotState.ERROR})
BUSY: Final = frozenset(MOVES) - IDLE
