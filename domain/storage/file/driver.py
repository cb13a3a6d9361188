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
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from domain.errors import ConfigurationError, StorageError
from domain.storage.backends import DriverUrl
from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredObject, StoredVolume, Usage
from domain.storage.errors import SnapshotMissing, VolumeMissing
from domain.storage.file.disk import (
    bytes_in_use,
    copy_file,
    domain_errors,
    grow_reserved,
    look,
    match_replaced_file,
    opened,
    release_blocks,
    resize,
    size_of,
    sync,
    sync_folder,
    unlink,
)
from domain.storage.file.fence import Fences
from domain.storage.file.root import Root
from domain.storage.file.tree import FileTree

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    work: Callable[Concatenate["FileDriver", P], T],
) -> Callable[Concatenate["FileDriver", P], Coroutine[Any, Any, T]]:
    """Run a method of the driver in its threads, if the root is still the one that was looked at."""

    @wraps(work)
    async def in_thread(self: "FileDriver", /, *args: P.args, **kwargs: P.kwargs) -> T:
        def step() -> T:
            with domain_errors():
                self._root.require()
                return work(self, *args, **kwargs)

        # A thread cannot be cancelled: if the awaiting task were cancelled, the thread would go on unobserved.
        # Therefore the caller never cancels; it stops the grant and waits until the thread notices.
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)

    return in_thread


class FileDriver(StorageDriver):
    """Stores one directory per volume below one root.

    Files are sparse, or have all their blocks reserved when they are created or grown (``reserve``).
    """

    def __init__(self, root: Path, threads: int, *, reserve: bool = False) -> None:
        self._tree = FileTree(root)
        self._root = Root(self._tree, reserve=reserve)
        self._fences = Fences(self._tree.fences, self._root.require)
        self._reserve = reserve
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self.place = str(self.root)
        if reserve:
            self.overcommit = 1.0

    @property
    def root(self) -> Path:
        """The directory that contains everything."""
        return self._tree.root

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
        return str(self._tree.data(volume_id))

    @_in_thread
    def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Create an empty file; never replace one."""
        self._fences.refuse_if_stale(volume_id, grant)
        data = self._tree.data(volume_id)
        with self._tree.draft(data, grant) as draft:
            with opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
                self._grow(handle, size, grant)
                sync(handle, grant)
            with self._fences.publishing("create", volume_id, grant):
                return self._tree.publish(draft, data, grant)

    @_in_thread
    def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrink it."""
        grant.check()
        data = self._tree.data(volume_id)
        with self._fences.publishing("expand", volume_id, grant):
            if not data.exists():
                raise VolumeMissing
            with opened(data, os.O_RDWR) as handle:
                if os.fstat(handle).st_size < size:
                    self._grow(handle, size, grant)
                sync(handle, grant)  # even if it has the size: an earlier attempt may have died right before its fsync
                return os.fstat(handle).st_size

    @_in_thread
    def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory to the trash in one step, then remove it from there."""
        grant.check()
        self._tree.empty_trash(volume_id, grant)
        with self._fences.publishing("delete", volume_id, grant):
            self._tree.move_to_trash(volume_id, grant)
        self._tree.empty_trash(volume_id, grant)

    @_in_thread
    def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the volume's size."""
        data = self._tree.data(volume_id)
        with self._fences.publishing("seal", volume_id, grant, seal=True):
            self._tree.sweep_drafts(data, grant)
            size = size_of(data)
            if size is not None and self._reserve:
                with opened(data, os.O_RDWR) as handle:
                    release_blocks(handle, grant)
            return size

    @_in_thread
    def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Copy the volume's file as it is now, by sharing its blocks if possible; never replace a snapshot."""
        data, snapshot = self._tree.data(volume_id), self._tree.snapshot(volume_id, snapshot_id)
        return self._copy_once("take_snapshot", snapshot_id, data, snapshot, grant, missing=VolumeMissing)

    @_in_thread
    def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Replace the volume's file by a copy with the same owner and mode; open handles keep the old file."""
        self._fences.refuse_if_stale(volume_id, grant)
        data, snapshot = self._tree.data(volume_id), self._tree.snapshot(volume_id, snapshot_id)
        if not snapshot.exists():
            raise SnapshotMissing
        with self._tree.draft(data, grant) as draft:
            copy_file(snapshot, draft, 0, grant)
            with self._fences.publishing("restore_snapshot", volume_id, grant):
                if not data.exists():
                    raise VolumeMissing
                size = match_replaced_file(draft, data, grant)
                with grant.blocking_call("replace"):
                    draft.replace(data)  # frees the blocks of the old file
                self._tree.sweep_drafts(data, grant)
                sync_folder(data.parent, grant)
                return size

    @_in_thread
    def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Create a new volume's file the way `take_snapshot` creates a snapshot's; never replace one."""
        snapshot, clone = self._tree.snapshot(volume_id, snapshot_id), self._tree.data(clone_id)
        return self._copy_once("clone_snapshot", clone_id, snapshot, clone, grant, missing=SnapshotMissing, size=size)

    @_in_thread
    def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot's file and its drafts; volumes cloned from it do not depend on it."""
        grant.check()
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._fences.publishing("delete_snapshot", snapshot_id, grant):
            unlink(snapshot, grant)
            self._tree.sweep_drafts(snapshot, grant)
            if snapshot.parent.is_dir():
                sync_folder(snapshot.parent, grant)

    @_in_thread
    def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the snapshot's size."""
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._fences.publishing("seal_snapshot", snapshot_id, grant, seal=True):
            self._tree.sweep_drafts(snapshot, grant)
            return size_of(snapshot)

    @_in_thread
    def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return sizes, and how many bytes hold data: unknown with ``allocate=full``, which allocates empty blocks."""
        usages: dict[UUID, Usage] = {}
        for volume_id in volume_ids:
            with suppress(OSError), opened(self._tree.data(volume_id), os.O_RDONLY) as handle:
                usages[volume_id] = Usage(os.fstat(handle).st_size, None if self._reserve else bytes_in_use(handle))
        return usages

    @_in_thread
    def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash."""
        return self._tree.volume_ids(after, limit)

    @_in_thread
    def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return the contents of a volume's directory, its trash, and the fences."""
        ids = {*snapshot_ids, *self._tree.snapshot_ids(volume_id)}
        return StoredVolume(
            self._stored(volume_id, self._tree.data(volume_id)),
            {id_: self._stored(id_, self._tree.snapshot(volume_id, id_)) for id_ in ids},
            list(self._tree.leftovers(volume_id)),
        )

    @_in_thread
    def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove drafts and trash, and the volume's directory if it is empty afterwards."""
        self._tree.remove(volume_id, leftovers)

    @_in_thread
    def old_fences(self, days: int) -> Sequence[UUID]:
        """List the fence records by the time of their last write."""
        return self._fences.older_than(days)

    @_in_thread
    def forget(self, subject_ids: Collection[UUID]) -> None:
        """Remove fence records."""
        self._fences.remove(subject_ids)

    async def capacity(self) -> Capacity:
        """Return the capacity of the file system that contains the root."""
        usage = await look(partial(shutil.disk_usage, self.root))  # free: without the blocks that are reserved for root
        return Capacity(usage.total, usage.used, usage.free)

    async def close(self) -> None:
        """Wait for running work and end the threads, without blocking the event loop."""
        await asyncio.to_thread(self._threads.shutdown)

    def _grow(self, handle: int, size: int, grant: Grant) -> None:
        if self._reserve:
            grow_reserved(handle, size, grant)
        else:
            resize(handle, size, grant)

    def _copy_once(
        self,
        operation: str,
        subject_id: UUID,
        source: Path,
        target: Path,
        grant: Grant,
        *,
        missing: type[StorageError],
        size: int = 0,
    ) -> int:
        """Publish a copy of at least ``size`` bytes unless the target exists; return the target's size in bytes."""
        self._fences.refuse_if_stale(subject_id, grant)
        if not target.exists() and not source.exists():
            raise missing
        with self._tree.draft(target, grant) as draft:
            if not target.exists():
                copy_file(source, draft, size, grant)
            with self._fences.publishing(operation, subject_id, grant):
                return self._tree.publish(draft, target, grant)

    def _stored(self, subject_id: UUID, path: Path) -> StoredObject:
        return StoredObject(size_of(path), self._fences.last(subject_id))


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
