"""The host, for the agent's event loop: each blocking operation in a thread, and none waited for without end."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from worker.node.host import filesystems
from worker.node.host.calls import describe, in_thread
from worker.node.host.errors import HostFailed
from worker.node.host.filesystems import GROW_SECONDS, SYNC_SECONDS, TRIM_SECONDS, FilesystemUsage
from worker.node.host.freeze import START_SECONDS, Freeze
from worker.node.host.operations import HostOperations
from worker.node.host.volumes import Attached, FoundVolume, Lost, always

#: How long one call may take, in seconds, unless it grows or trims.
CALL_SECONDS: Final = 120.0
USAGE_SECONDS: Final = 10.0
#: Letting go of a lost volume takes bounded steps; this bounds their sum.
LOST_SECONDS: Final = 60.0

_T = TypeVar("_T")


class HeldFreeze(Protocol):
    """A file system that is frozen until it is released, or until its time is over."""

    def still_frozen(self) -> bool:
        """Return whether it has been frozen from the start until now. Does not block."""

    async def release(self) -> bool:
        """Thaw; return whether the file system was frozen the whole time."""


class HostProtocol(Protocol):
    """What the agent needs of a host. Errors are those of `worker.node.host.errors`."""

    def claimed(self, node: str, installation: str) -> AbstractContextManager[None]:
        """Keep the agents of other nodes, and others of this one, from the base directory while the block runs."""

    async def prepare(self) -> None:
        """Make the base directory a shared mount. `attach` does so, too."""

    async def attach(
        self, file: Path, volume_id: UUID, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        """Give the file a loop device, mount it, and grow the file system to the size of the file.

        ``check`` is called right before each step, in a thread, and raises an error when it must not be done any more.
        """

    async def bind(self, volume_id: UUID, target: Path, *, read_only: bool) -> None:
        """Show the file system of an attached volume at a holder's directory."""

    async def unbind(self, volume_id: UUID, target: Path) -> None:
        """Remove the bind mount of a holder, if it is there."""

    async def detach(self, volume_id: UUID) -> None:
        """Unmount a volume and take its loop device away; refuse while a bind mount is left."""

    async def grow(self, volume_id: UUID, filesystem: str | None) -> int:
        """Grow device and file system to the size of the file; return that size in bytes."""

    async def usage(self, volume_id: UUID) -> FilesystemUsage:
        """Measure the mounted file system of a volume."""

    async def trim(self, volume_id: UUID) -> None:
        """Give the unused blocks of a volume back to its backend."""

    async def freeze(self, volume_id: UUID, seconds: float) -> HeldFreeze:
        """Write out and freeze the file system of a volume, for at most ``seconds``."""

    async def thaw_all(self) -> Sequence[UUID]:
        """Thaw what a killed agent has left frozen; return the volumes."""

    async def release_lost(self, volume_id: UUID) -> Lost:
        """Let go of a volume that belongs to this node no longer, without waiting for the processes that use it."""

    async def found(self) -> Sequence[FoundVolume]:
        """Return the volumes that this host has from this node."""


class Host:
    """This host, with its volumes mounted below ``base_dir``."""

    def __init__(self, base_dir: Path, *, allowed: Sequence[Path] = ()) -> None:
        """Prepare the host; holders may have volumes below the ``allowed`` directories."""
        self._operations = HostOperations(base_dir, allowed=allowed)

    def claimed(self, node: str, installation: str) -> AbstractContextManager[None]:
        """See `HostProtocol`."""
        return self._operations.claimed(node, installation)

    async def prepare(self) -> None:
        """See `HostProtocol`."""
        await _call(CALL_SECONDS, self._operations.prepare)

    async def attach(
        self, file: Path, volume_id: UUID, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        """See `HostProtocol`."""
        seconds = CALL_SECONDS + 2 * GROW_SECONDS
        return await _call(seconds, self._operations.attach, file, volume_id, filesystem, check)

    async def bind(self, volume_id: UUID, target: Path, *, read_only: bool) -> None:
        """See `HostProtocol`."""
        await _call(CALL_SECONDS, partial(self._operations.bind, volume_id, target, read_only=read_only))

    async def unbind(self, volume_id: UUID, target: Path) -> None:
        """See `HostProtocol`."""
        await _call(CALL_SECONDS, self._operations.unbind, volume_id, target)

    async def detach(self, volume_id: UUID) -> None:
        """See `HostProtocol`."""
        await _call(CALL_SECONDS, self._operations.detach, volume_id)

    async def grow(self, volume_id: UUID, filesystem: str | None) -> int:
        """See `HostProtocol`."""
        seconds = CALL_SECONDS + GROW_SECONDS
        return await _call(seconds, self._operations.grow, volume_id, filesystem)

    async def usage(self, volume_id: UUID) -> FilesystemUsage:
        """See `HostProtocol`."""
        return await _call(USAGE_SECONDS, self._operations.usage, volume_id)

    async def trim(self, volume_id: UUID) -> None:
        """See `HostProtocol`."""
        await _call(TRIM_SECONDS, self._operations.trim, volume_id)

    async def freeze(self, volume_id: UUID, seconds: float) -> HeldFreeze:
        """See `HostProtocol`. Nothing stays frozen if the task is cancelled meanwhile."""
        path = await _call(USAGE_SECONDS, self._operations.mounted_path, volume_id)
        # What is written out before need not be written out while all writers wait.
        await _call(SYNC_SECONDS, filesystems.sync, path)
        freeze = Freeze(path, seconds)
        try:
            await _call(seconds + 2 * START_SECONDS, freeze.start)
        except BaseException:
            freeze.abandon()
            raise
        return _HeldFreeze(freeze)

    async def thaw_all(self) -> Sequence[UUID]:
        """See `HostProtocol`."""
        return await _call(CALL_SECONDS, self._operations.thaw_all)

    async def release_lost(self, volume_id: UUID) -> Lost:
        """See `HostProtocol`."""
        return await _call(LOST_SECONDS, self._operations.release_lost, volume_id)

    async def found(self) -> Sequence[FoundVolume]:
        """See `HostProtocol`."""
        return await _call(CALL_SECONDS, self._operations.found)


class _HeldFreeze:
    def __init__(self, freeze: Freeze) -> None:
        self._freeze = freeze

    def still_frozen(self) -> bool:
        return self._freeze.still_frozen()

    async def release(self) -> bool:
        return await _call(CALL_SECONDS, self._freeze.release)


async def _call(seconds: float, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call in a thread; an error of a system call becomes one that fails or retries a job."""
    try:
        return await in_thread(seconds, function, *arguments)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise HostFailed(f"{place}{describe(error)}.") from error
