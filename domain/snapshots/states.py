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
    SnapshotState.CLONING: frozenset({SnapshotState.READY}),
    SnapshotState.DELETING: frozenset({SnapshotState.ERROR}),
    SnapshotState.ERROR: frozenset({SnapshotState.DELETING}),
}
