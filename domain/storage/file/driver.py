"""The file driver: volumes and snapshots as files on a file system shared by all workers.

This is the asynchronous interface; `FileVolumes`, `FileSnapshots` and `FileInventory` do the work in threads.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

from domain.errors import ConfigurationError
from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredVolume, Usage
from domain.storage.file.disk import domain_errors
from domain.storage.file.inventory import FileInventory
from domain.storage.file.reserve import require_reserving
from domain.storage.file.snapshots import FileSnapshots
from domain.storage.file.tree import FileTree
from domain.storage.file.volumes import FileVolumes
from domain.storage.urls import DriverUrl

P = ParamSpec("P")
T = TypeVar("T")


class FileDriver(StorageDriver):
    """Stores one directory per volume below one root."""

    def __init__(self, root: Path, threads: int, *, reserve: bool = False) -> None:
        """``reserve``: whether all blocks of a volume are allocated when it is created or grown."""
        self._tree = FileTree(root)
        self._reserve = reserve
        self._volumes = FileVolumes(self._tree, reserve=reserve)
        self._snapshots = FileSnapshots(self._tree)
        self._inventory = FileInventory(self._tree)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self._prepared = False

    @property
    def root(self) -> Path:
        """The directory that contains everything."""
        return self._tree.root

    def prepare(self) -> None:
        """Create the directories and check that they are usable.

        Raises:
            OSError: a directory cannot be created or written to, or blocks cannot be reserved.
        """
        self._tree.prepare()
        if self._reserve:
            require_reserving(self.root)
        self._prepared = True

    def path(self, volume_id: UUID) -> str:
        """Return the path of the volume's bytes; the file may not exist yet."""
        return str(self._tree.data(volume_id))

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Create an empty file; never replace one."""
        return await self._run(self._volumes.create, volume_id, size, grant)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrink it."""
        return await self._run(self._volumes.expand, volume_id, size, grant)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory to the trash in one step, then remove it from there."""
        await self._run(self._volumes.delete, volume_id, grant)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, even if the attempt was stopped; return the volume's size."""
        return await self._run(self._volumes.seal, volume_id, grant)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Share the blocks of the volume's file if the file system can, else copy it with its holes."""
        return await self._run(self._snapshots.take, volume_id, snapshot_id, grant)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Replace the volume's file by a copy with the same owner and mode; open handles keep the old file."""
        return await self._run(self._snapshots.restore, volume_id, snapshot_id, grant)

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Create a new volume's file the way `take_snapshot` creates a snapshot's; never replace one."""
        return await self._run(self._snapshots.clone, volume_id, snapshot_id, clone_id, size, grant)

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot's file; volumes cloned from it do not depend on it."""
        await self._run(self._snapshots.delete, volume_id, snapshot_id, grant)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, even if the attempt was stopped; return the snapshot's size."""
        return await self._run(self._snapshots.seal, volume_id, snapshot_id, grant)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return sizes and allocated bytes as the file system reports them."""
        return await self._run(self._volumes.measure, volume_ids)

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash."""
        return await self._run(self._inventory.page, after, limit)

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return the contents of a volume's directory, its trash, and the fences."""
        return await self._run(self._inventory.stat, volume_id, snapshot_ids)

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove drafts and trash, and the volume's directory if it is empty afterwards."""
        await self._run(self._inventory.sweep, volume_id, leftovers)

    async def capacity(self) -> Capacity:
        """Return the capacity of the file system that contains the root."""
        return await self._run(self._capacity)

    async def close(self) -> None:
        """Wait for running work and end the threads, without blocking the event loop."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # A thread cannot be cancelled: if the awaiting task were cancelled, the thread would go on unobserved.
        # Therefore the caller never cancels; it stops the grant and waits until the thread notices.
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._step(step, *args, **kwargs)
        )

    def _step(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with domain_errors():
            # Only once: if the root disappears later, the disk is unmounted, and a new empty root would be wrong.
            if not self._prepared:
                self.prepare()
            return step(*args, **kwargs)

    def _capacity(self) -> Capacity:
        status = os.statvfs(self.root)
        used = status.f_blocks - status.f_bfree
        return Capacity(status.f_blocks * status.f_frsize, used * status.f_frsize)


def open_driver(url: DriverUrl, threads: int) -> FileDriver:
    """Open ``file:PATH``, or ``file:PATH?allocate=full`` to allocate all blocks when a volume is created or grown.

    Raises:
        ConfigurationError: the path is missing or not writable, or the file system cannot reserve blocks.
    """
    allocate = url.options.pop("allocate", "sparse")
    if allocate not in ("sparse", "full"):
        raise ConfigurationError(f"allocate={allocate!r} is neither sparse nor full")
    # Other programs write file:///srv/volumes for file:/srv/volumes.
    root = url.path.removeprefix("//") if url.path.startswith("///") else url.path
    if not root or root.startswith("//"):
        raise ConfigurationError(f"file: needs a path, such as file:/srv/volumes, not {url.path!r}")
    driver = FileDriver(Path(root), threads, reserve=allocate == "full")
    try:
        driver.prepare()
    except OSError as error:
        problem = "cannot reserve blocks (allocate=full)" if error.errno == errno.EOPNOTSUPP else "is not writable"
        raise ConfigurationError(f"{driver.root} {problem}: {error.strerror}") from error
    return driver
