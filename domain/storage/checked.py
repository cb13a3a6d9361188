"""What drivers report, looked at in one place before the domain believes it: a row cannot hold every number."""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from domain import metrics
from domain.storage.context import MAX_FENCE, Stopped
from domain.storage.driver import MAX_STORED_SIZE, Capacity, StorageDriver, Taken, Usage
from domain.storage.errors import (
    FenceRefused,
    PermanentStorageError,
    SizeImpossible,
    StorageBusy,
    TransientStorageError,
)

T = TypeVar("T")

#: The methods that return the size of what they have made.
_SIZED: Final = frozenset({"create", "expand", "clone_snapshot", "isolate"})
#: The methods that return a size, or None; one of them among other things.
_PERHAPS_SIZED: Final = frozenset({"seal", "seal_snapshot", "take_snapshot", "restore_snapshot"})
_MOST_BYTES: Final = 2**63 - 1
#: How a failed call is counted, by its error; the first that fits counts.
_RESULTS: Final = {
    Stopped: "stopped",
    FenceRefused: "fence-refused",
    StorageBusy: "busy",
    TransientStorageError: "transient-error",
    PermanentStorageError: "permanent-error",
}
_UNSIZED: Final = frozenset({"delete", "delete_snapshot", "grow_filesystem"})
#: The methods that change something.
CHANGING: Final = _SIZED | _PERHAPS_SIZED | _UNSIZED


def is_stored_size(size: object) -> bool:
    """Return whether a volume or snapshot can have this size, in bytes."""
    return _is_count(size, 1, MAX_STORED_SIZE)


def _is_count(value: object, lowest: int, highest: int) -> bool:
    """Return whether a value is a whole number in a range; True is none, although Python calls it an int."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def is_capacity(capacity: Capacity) -> bool:
    """Return whether a backend can have this capacity, as far as PostgreSQL can store it."""
    counts = (count for count in (capacity.total, capacity.used, capacity.free) if count is not None)
    return all(_is_count(count, 0, _MOST_BYTES) for count in counts)


class CheckedDriver:
    """Delegates to a driver. A size or fence that no volume can have is an error of the one volume it is reported for.

    Raises:
        SizeImpossible: the driver has reported such a size. What it was asked for is done.
        PermanentStorageError: it has reported such a fence.
    """

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in CHANGING:
            method = partial(_changed, name, method)
            setattr(self, name, method)  # the next call finds it without coming here
        return method

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Measure volumes; those whose size or use cannot be true are left out, as if they could not be measured."""
        found = await _measured("measure", self._inner.measure, volume_ids)
        return {id_: usage for id_, usage in found.items() if _is_usage(usage)}


async def _changed(name: str, method: Callable[..., Awaitable[object]], *args: object, **options: object) -> object:
    try:
        found = await _measured(name, method, *args, **options)
    except FenceRefused as error:
        if error.stored is not None and not all(_is_count(number, 0, MAX_FENCE) for number in error.stored):
            raise PermanentStorageError(f"The backend has an impossible fence: {error.stored!r:.80}.") from error
        raise
    size = found.size if isinstance(found, Taken) else found
    if name in _UNSIZED or is_stored_size(size) or (size is None and name in _PERHAPS_SIZED):
        return found
    raise SizeImpossible(f"The backend reports an impossible size: {size!r:.40}.")


async def _measured(name: str, method: Callable[..., Awaitable[T]], *args: object, **options: object) -> T:
    """Call a method, and record in the metrics how it ended and how long it took."""
    recorder = metrics.current()
    if not recorder.is_on:
        return await method(*args, **options)
    result, started_at = "error", time.monotonic()
    try:
        found = await method(*args, **options)
        result = "ok"
    except Exception as error:
        result = next((name for kind, name in _RESULTS.items() if isinstance(error, kind)), result)
        raise
    finally:
        recorder.storage_used(name, result, time.monotonic() - started_at)
    return found


def _is_usage(usage: Usage) -> bool:
    used = usage.used
    return is_stored_size(usage.size) and (used is None or _is_count(used, 0, MAX_STORED_SIZE))
