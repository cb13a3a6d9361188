"""Compares a row with its stored state: pure functions, without SQL or storage."""

from collections.abc import Iterator
from typing import Final

from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, snapshot, volume
from domain.check.rows import RowState
from domain.operations import BUSY, SNAPSHOT_MOVES, VOLUME_MOVES, SnapshotState, VolumeState
from domain.storage.context import Fence
from domain.storage.driver import StoredObject
from domain.volumes.model import MAX_SIZE

_LEASED: Final = "a worker may be working on it: check again when its job has ended"
_RESTORE_FILE: Final = "is the backend mounted? otherwise restore the file, or delete it here too"
_INVALID_SIZE: Final = f"a size must be between 1 and {MAX_SIZE}: inspect the file"


def compare(row: RowState, stored: StoredObject | None) -> list[Finding]:
    """Return the differences between a row and its stored state; ``stored`` None if the backend stores nothing."""
    if not row.at_rest and row.holder is None:
        return [_without_job(row, stored)]
    return [] if stored is None else [*_data(row, stored), *_fence(row, stored.fence)]


def resting_state(row: RowState, size: int | None, *, stores_sizes: bool) -> VolumeState | SnapshotState:
    """Return the state for a row without a job, given the stored size; without data it is never usable."""
    error = VolumeState.ERROR if row.is_volume else SnapshotState.ERROR
    if row.state not in BUSY:
        return error if stores_sizes and size is None else row.state
    # An operation that may end in `error` may have stopped halfway; any other leaves its subject usable at every step.
    moves = VOLUME_MOVES[VolumeState(row.state)] if row.is_volume else SNAPSHOT_MOVES[SnapshotState(row.state)]
    usable = VolumeState.AVAILABLE if row.is_volume else SnapshotState.READY
    return error if error in moves or (stores_sizes and size is None) else usable


def is_valid_size(size: int | None) -> bool:
    """Return whether a row can have this size."""
    return size is not None and 0 < size <= MAX_SIZE


def subject(row: RowState) -> str:
    """Return the subject of a finding about a row."""
    return volume(row.id) if row.is_volume else snapshot(row.id)


def _without_job(row: RowState, stored: StoredObject | None) -> Finding:
    problem = f"is {row.state}, but no live job holds it"
    # A backend with neither data nor a fence of the subject may be the wrong disk, unless the subject was just being
    # created.
    unknown_to_backend = stored is not None and stored.size is None and stored.fence is None
    being_created = row.state in (VolumeState.CREATING, SnapshotState.TAKING)
    remedy = _RESTORE_FILE if unknown_to_backend and not being_created else REPAIR_COMMAND
    return Finding(CheckCode.NO_JOB, subject(row), problem, remedy)


def _data(row: RowState, stored: StoredObject) -> Iterator[Finding]:
    if not row.must_have_data:
        return
    if stored.size is None:
        deleted = stored.fence is not None and stored.fence.version >= row.version
        yield Finding(
            CheckCode.DATA_MISSING,
            subject(row),
            f"is {row.state}, but its data {'was deleted later' if deleted else 'is missing'}",
            REPAIR_COMMAND if deleted else _RESTORE_FILE,
        )
    elif stored.size != row.size:
        problem = f"has {stored.size} bytes on its backend, {row.size} in its row"
        remedy = REPAIR_COMMAND if is_valid_size(stored.size) else _INVALID_SIZE
        yield Finding(CheckCode.SIZE_DIFFERS, subject(row), problem, remedy)


def _fence(row: RowState, fence: Fence | None) -> Iterator[Finding]:
    if fence is None or not _is_behind(row, fence):
        return
    leased = row.holder is not None and row.holder.leased and row.holder.fence_in_params
    own = row.holder.fence if row.holder is not None and row.holder.fence is not None else (row.version,)
    problem = f"its backend has the fence {tuple(fence)}, which is not below the row's {tuple(own)}"
    yield Finding(CheckCode.FENCE_BEHIND, subject(row), problem, _LEASED if leased else REPAIR_COMMAND)


def _is_behind(row: RowState, fence: Fence) -> bool:
    """Return whether the next attempt would be refused.

    The version of an idle row is above every published fence. The fence of a job that holds the row may be equal: its
    current attempt may have published.
    """
    if row.holder is not None and row.holder.fence is not None:
        return row.holder.fence < fence
    return row.version <= fence.version
