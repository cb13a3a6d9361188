"""Compares a row with what its backend has: no SQL, no storage, only what follows from both."""

from collections.abc import Iterator
from typing import Final

from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, snapshot, volume
from domain.check.rows import RowState
from domain.snapshots.states import IDLE as SNAPSHOT_IDLE
from domain.snapshots.states import MOVES as SNAPSHOT_MOVES
from domain.snapshots.states import SnapshotState
from domain.storage.context import Fence
from domain.storage.driver import StoredObject
from domain.volumes.model import MAX_SIZE
from domain.volumes.states import IDLE, MOVES, VolumeState

_LEASED: Final = "a worker is at it: check again when its job has ended"
_RESTORE_FILE: Final = "is the backend mounted? else put the file back, or delete it here too"
_NO_SIZE: Final = f"a size must be between 1 and {MAX_SIZE}: look into the file"


def compare(seen: RowState, stored: StoredObject | None) -> list[Finding]:
    """Say what does not agree about one row; ``stored`` None where the backend knows nothing."""
    if not seen.rests and seen.hold is None:
        return [_without_job(seen, stored)]
    return [] if stored is None else [*_data(seen, stored), *_fence(seen, stored.fence)]


def resting_state(seen: RowState, size: int | None, *, knows_sizes: bool) -> VolumeState | SnapshotState:
    """Where a stranded row comes to rest, given the size found; without data it is never usable."""
    error = VolumeState.ERROR if seen.is_volume else SnapshotState.ERROR
    if seen.state in IDLE or seen.state in SNAPSHOT_IDLE:
        return error if knows_sizes and size is None else seen.state
    # Where an operation may end in `error`, nobody knows how far it came; else it has left its volume usable.
    may_fail = error in (
        MOVES[VolumeState(seen.state)] if seen.is_volume else SNAPSHOT_MOVES[SnapshotState(seen.state)]
    )
    usable = VolumeState.AVAILABLE if seen.is_volume else SnapshotState.READY
    return error if may_fail or (knows_sizes and size is None) else usable


def fits(size: int | None) -> bool:
    """Tell whether a row can have this size."""
    return size is not None and 0 < size <= MAX_SIZE


def subject(seen: RowState) -> str:
    """Name what the row is about."""
    return volume(seen.id) if seen.is_volume else snapshot(seen.id)


def _without_job(seen: RowState, stored: StoredObject | None) -> Finding:
    problem = f"is {seen.state}, but no live job has it"
    # A disk that knows nothing at all may be another one.
    strange = stored is not None and stored.size is None and stored.fence is None
    in_the_making = seen.state in (VolumeState.CREATING, SnapshotState.TAKING)
    return Finding(
        CheckCode.NO_JOB, subject(seen), problem, _RESTORE_FILE if strange and not in_the_making else REPAIR_COMMAND
    )


def _data(seen: RowState, stored: StoredObject) -> Iterator[Finding]:
    if not seen.whole:
        return
    if stored.size is None:
        deleted = stored.fence is not None and stored.fence.version >= seen.version
        yield Finding(
            CheckCode.DATA_MISSING,
            subject(seen),
            f"is {seen.state}, but its data {'has been deleted since' if deleted else 'is not there'}",
            REPAIR_COMMAND if deleted else _RESTORE_FILE,
        )
    elif stored.size != seen.size:
        problem = f"has {stored.size} bytes on its backend, {seen.size} in its row"
        yield Finding(CheckCode.SIZE_DIFFERS, subject(seen), problem, REPAIR_COMMAND if fits(stored.size) else _NO_SIZE)


def _fence(seen: RowState, fence: Fence | None) -> Iterator[Finding]:
    if fence is None or not _behind(seen, fence):
        return
    leased = seen.hold is not None and seen.hold.leased and seen.hold.named
    own = seen.hold.fence if seen.hold is not None and seen.hold.fence is not None else (seen.version,)
    problem = f"the backend has seen attempt {tuple(fence)}, which is not before the row's {tuple(own)}"
    yield Finding(CheckCode.FENCE_BEHIND, subject(seen), problem, _LEASED if leased else REPAIR_COMMAND)


def _behind(seen: RowState, fence: Fence) -> bool:
    """At rest, a row is above all that was published; in a job's hands, its present attempt may have published."""
    if seen.hold is not None and seen.hold.fence is not None:
        return seen.hold.fence < fence
    return seen.version <= fence.version
