"""The file driver: volumes and snapshots as files on a file system shared by all workers.

A snapshot is a file that is never written to again. A new file is made as a draft beside its target before the lock is
taken, so a long copy blocks no other operation; publishing it is one link or one rename.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from domain.errors import ConfigurationError, StorageError
from domain.storage.backends import DriverUrl
from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredObject, StoredVolume, Taken, Usage
from domain.storage.errors import SnapshotMissing, VolumeMissing
from domain.storage.file.disk import (
    bytes_in_use,
    copy_file,
    domain_errors,
    grow_reserved,
    look,
    punch_holes,
    release_blocks,
    reserve_range,
    resize,
    sync,
)
from domain.storage.file.filesystem import installed, make
from domain.storage.file.opened import Opened
from domain.storage.file.root import Root, without_job
from domain.storage.file.tree import data_of, snapshot_of
from domain.storage.filesystems import GROWN_OFFLINE, require_room

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    work: Callable[Concatenate["FileDriver", Opened, P], T],
) -> Callable[Concatenate["FileDriver", P], Coroutine[Any, Any, T]]:
    """Run a method of the driver in its threads, if the root is still the one that was looked at."""

    @wraps(work)
    async def in_thread(self: "FileDriver", /, *args: P.args, **kwargs: P.kwargs) -> T:
        def step() -> T:
            with domain_errors(), self._root.opened() as root:
                return work(self, Opened(root, self._root.require), *args, **kwargs)

        # A thread cannot be cancelled: if the awaiting task were cancelled, the thread would go on unobserved.
        # Therefore the caller never cancels; it stops the grant and waits until the thread notices.
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    return in_thread


class FileDriver(StorageDriver):
    """Stores one directory per volume below one root.

    Files are sparse, or have all their blocks reserved when they are created or grown (``reserve``).
    """

    def __init__(self, root: Path, threads: int, *, reserve: bool = False) -> None:
        #: The directory that contains everything.
        self.root = root.absolute()
        self._root = Root(self.root, reserve=reserve)
        self._reserve = reserve
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self.place = str(self.root)
        self.filesystems = installed()
        if reserve:
            self.overcommit = 1.0

    async def identity(self) -> str | None:
        """Read the file ``.cistern`` in the root."""
        return await look(self._root.read_identity)

    async def initialize(self, identity: str, expected: Collection[UUID] = ()) -> str:
        """Create the directories and the file ``.cistern``, unless they exist."""
        return await look(partial(self._root.initialize, identity, expected))

    async def accept(self, identity: str) -> None:
        """Work as long as the file has this content."""
        await look(partial(self._root.accept, identity))

    def prepare(self) -> None:
        """Make a root for a driver that no registry has opened, in this thread."""
        self._root.accept(self._root.initialize("{}"))

    def path(self, volume_id: UUID) -> str:
        """Return the path of the volume's bytes; the file may not exist yet."""
        return str(self.root / data_of(volume_id))

    @_in_thread
    def create(self, at: Opened, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        """Create a file, empty or with a file system; never replace one."""
        at.fences.refuse_if_stale(volume_id, grant)
        with at.tree.draft(data_of(volume_id), grant) as draft:
            handle = draft.create()
            if filesystem is None:
                self._grow(handle, size, grant)
            else:
                self._make_filesystem(handle, size, filesystem, volume_id, grant)
            sync(handle, grant)
            with at.fences.publishing("create", volume_id, grant):
                return draft.publish()

    @_in_thread
    def expand(self, at: Opened, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrink it."""
        grant.check()
        data = data_of(volume_id)
        with at.fences.publishing("expand", volume_id, grant):
            if at.tree.size(data) is None:
                raise VolumeMissing
            with at.tree.opened(data, os.O_RDWR) as handle:
                if os.fstat(handle).st_size < size:
                    self._grow(handle, size, grant)
                sync(handle, grant)  # even if it has the size: an earlier attempt may have died right before its fsync
                return os.fstat(handle).st_size

    @_in_thread
    def grow_filesystem(self, at: Opened, volume_id: UUID, filesystem: str, grant: Grant) -> None:
        """Grow ext4 with its own tools; the others grow when they are mounted."""
        grant.check()
        if filesystem in GROWN_OFFLINE:
            at.grow_ext4(volume_id, grant)

    @_in_thread
    def delete(self, at: Opened, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory to the trash in one step, then remove it from there."""
        grant.check()
        at.tree.empty_trash(volume_id, grant)
        with (
            at.fences.publishing("delete", volume_id, grant),
            at.tree.unused(data_of(volume_id), grant),
        ):
            at.tree.move_to_trash(volume_id, grant)
        at.tree.empty_trash(volume_id, grant)

    @_in_thread
    def seal(self, at: Opened, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the volume's size."""
        data = data_of(volume_id)
        with at.fences.publishing("seal", volume_id, grant, seal=True):
            at.tree.sweep_drafts(data, grant)
            size = at.tree.size(data)
            if size is not None and self._reserve:
                with at.tree.opened(data, os.O_RDWR) as handle:
                    release_blocks(handle, grant)
            return size

    @_in_thread
    def isolate(self, at: Opened, volume_id: UUID, grant: Grant) -> int:
        """Put a copy in the place of the volume's file, even if processes have that open.

        The copy is of one moment only where blocks can be shared: elsewhere it may be torn.
        """
        return at.replace("isolate", volume_id, data_of(volume_id), grant, missing=VolumeMissing, in_use=True)

    @_in_thread
    def take_snapshot(
        self, at: Opened, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool = True
    ) -> Taken:
        """Copy the volume's file as it is now, by sharing its blocks if possible; never replace a snapshot."""
        return at.take(volume_id, snapshot_id, grant, allow_torn=allow_torn)

    @_in_thread
    def restore_snapshot(self, at: Opened, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Replace the volume's file by a copy with the same owner and mode, unless another process has it open."""
        snapshot = snapshot_of(volume_id, snapshot_id)
        return at.replace("restore_snapshot", volume_id, snapshot, grant, missing=SnapshotMissing)

    @_in_thread
    def clone_snapshot(  # noqa: PLR0917 (those of the protocol)
        self, at: Opened, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant
    ) -> int:
        """Create a new volume's file the way `take_snapshot` creates a snapshot's; never replace one."""
        snapshot, clone = snapshot_of(volume_id, snapshot_id), data_of(clone_id)
        copy = partial(copy_file, min_size=size, grant=grant)
        return at.copy_once("clone_snapshot", clone_id, snapshot, clone, grant, copy=copy, missing=SnapshotMissing)

    @_in_thread
    def delete_snapshot(self, at: Opened, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot's file and its drafts; volumes cloned from it do not depend on it."""
        grant.check()
        with at.fences.publishing("delete_snapshot", snapshot_id, grant):
            at.tree.unlink(snapshot_of(volume_id, snapshot_id), grant)

    @_in_thread
    def seal_snapshot(self, at: Opened, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the snapshot's size."""
        snapshot = snapshot_of(volume_id, snapshot_id)
        with at.fences.publishing("seal_snapshot", snapshot_id, grant, seal=True):
            at.tree.sweep_drafts(snapshot, grant)
            return at.tree.size(snapshot)

    @_in_thread
    def measure(self, at: Opened, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return sizes, and how many bytes hold data: unknown with ``allocate=full``, which allocates empty blocks."""
        usages: dict[UUID, Usage] = {}
        for volume_id in volume_ids:
            with suppress(OSError, StorageError), at.tree.opened(data_of(volume_id), os.O_RDONLY) as handle:
                usages[volume_id] = Usage(os.fstat(handle).st_size, None if self._reserve else bytes_in_use(handle))
        return usages

    @_in_thread
    def inventory(self, at: Opened, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash."""
        return at.tree.volume_ids(after, limit)

    @_in_thread
    def stat(self, at: Opened, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return the contents of a volume's directory, its trash, and the fences."""

        def stored(subject_id: UUID, place: PurePosixPath) -> StoredObject:
            return StoredObject(at.tree.size(place), at.fences.last(subject_id))

        ids = {*snapshot_ids, *at.tree.snapshot_ids(volume_id)}
        return StoredVolume(
            stored(volume_id, data_of(volume_id)),
            {id_: stored(id_, snapshot_of(volume_id, id_)) for id_ in ids},
            list(at.tree.leftovers(volume_id)),
        )

    @_in_thread
    def sweep(self, at: Opened, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove drafts and trash, and the volume's directory if it is empty afterwards."""
        at.tree.remove(volume_id, leftovers, without_job())

    @_in_thread
    def old_fences(self, at: Opened, days: int) -> Sequence[UUID]:
        """List the fence records by the time of their last write."""
        return at.fences.older_than(days)

    @_in_thread
    def forget(self, at: Opened, subject_ids: Collection[UUID]) -> None:
        """Remove fence records."""
        at.fences.remove(subject_ids, without_job())

    async def capacity(self) -> Capacity:
        """Return the capacity of the file system that contains the root."""
        usage = await look(partial(shutil.disk_usage, self.root))  # free: without the blocks that are reserved for root
        return Capacity(usage.total, usage.used, usage.free)

    async def close(self) -> None:
        """Wait for running work and end the threads, without blocking the event loop."""
        await asyncio.to_thread(self._threads.shutdown)

    def _make_filesystem(self, handle: int, size: int, filesystem: str, volume_id: UUID, grant: Grant) -> None:
        """Make a file system in an empty file before its blocks are reserved: tools release blocks without data."""
        require_room(filesystem, size)
        resize(handle, size, grant)
        make(handle, filesystem, volume_id, grant)
        if self._reserve:
            reserve_range(handle, 0, size, grant)
        else:
            punch_holes(handle, grant)

    def _grow(self, handle: int, size: int, grant: Grant) -> None:
        if self._reserve:
            grow_reserved(handle, size, grant)
        else:
            resize(handle, size, grant)


def open_driver(url: DriverUrl, threads: int) -> FileDriver:
    """Open ``file:PATH``, or ``file:PATH?allocate=full`` to allocate all blocks when a volume is created or grown.

    Raises:
        ConfigurationError: the URL has no path, or ``allocate`` is invalid.
    """
    allocate = url.options.pop("allocate", "sparse")
    if allocate not in ("sparse", "full"):
        raise ConfigurationError(f"allocate={allocate!r} is neither sparse nor full")
    # Other programs write file:///srv/volumes for file:/srv/volumes.
    root = url.path.removeprefix("//") if url.path.startswith("///") else url.path
    if not root or root.startswith("//"):
        raise ConfigurationError(f"file: needs a path, such as file:/srv/volumes, not {url.path!r}")
    return FileDriver(Path(root), threads, reserve=allocate == "full")
