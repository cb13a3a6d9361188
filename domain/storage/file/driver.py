"""Volumes and snapshots as sparse files, for as many workers as share the file system.

This is the asynchronous face; the work is done by `FileVolumes` and `FileSnapshots`, in threads.
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
from domain.storage.driver import Capacity, Leftover, StoredVolume, Usage
from domain.storage.file.disk import domain_errors
from domain.storage.file.inventory import FileInventory
from domain.storage.file.reserve import require_reserving
from domain.storage.file.snapshots import FileSnapshots
from domain.storage.file.tree import FileTree
from domain.storage.file.volumes import FileVolumes
from domain.storage.urls import DriverUrl

P = ParamSpec("P")
T = TypeVar("T")


class FileDriver:
    """One directory per volume, below one root."""

    def __init__(self, root: Path, threads: int, *, reserve: bool = False) -> None:
        """``reserve``: whether volumes that are made or grown take all their room at once."""
        self._tree = FileTree(root)
        self._reserve = reserve
        self._volumes = FileVolumes(self._tree, reserve=reserve)
        self._snapshots = FileSnapshots(self._tree)
        self._inventory = FileInventory(self._tree)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self._prepared = False

    @property
    def root(self) -> Path:
        """Where everything is kept."""
        return self._tree.root

    def prepare(self) -> None:
        """Make the directories and try whether they can be used; raises the OSError it meets."""
        self._tree.prepare()
        if self._reserve:
            require_reserving(self.root)
        self._prepared = True

    def path(self, volume_id: UUID) -> str:
        """Where the volume's bytes are; the file may not exist yet."""
        return str(self._tree.data(volume_id))

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Make an empty file; never replaces one."""
        return await self._run(self._volumes.create, volume_id, size, grant)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrinks it."""
        return await self._run(self._volumes.expand, volume_id, size, grant)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory out of sight in one step, then remove it."""
        await self._run(self._volumes.delete, volume_id, grant)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, whether or not the attempt was stopped; returns the size found."""
        return await self._run(self._volumes.seal, volume_id, grant)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Share the file's blocks where the file system can do that, else copy it with its holes."""
        return await self._run(self._snapshots.take, volume_id, snapshot_id, grant)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Put a copy in the place of the volume's file, with its owner and mode; open handles keep the old one."""
        return await self._run(self._snapshots.restore, volume_id, snapshot_id, grant)

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Make another volume's file as `take_snapshot` makes a snapshot's; never replaces one."""
        return await self._run(self._snapshots.clone, volume_id, snapshot_id, clone_id, size, grant)

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot's file; what was made from it stands on its own."""
        await self._run(self._snapshots.delete, volume_id, snapshot_id, grant)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, whether or not the attempt was stopped; returns the size found."""
        return await self._run(self._snapshots.seal, volume_id, snapshot_id, grant)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Report sizes and allocated bytes, as the file system tells them."""
        return await self._run(self._volumes.measure, volume_ids)

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the directories of volumes, and whose trash there is."""
        return await self._run(self._inventory.page, after, limit)

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Report what lies in a volume's directory and in the trash, and the fences."""
        return await self._run(self._inventory.stat, volume_id, snapshot_ids)

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove drafts and trash, and the volume's directory if nothing else was in it."""
        await self._run(self._inventory.sweep, volume_id, leftovers)

    async def capacity(self) -> Capacity:
        """Report on the file system that holds the root."""
        return await self._run(self._capacity)

    async def close(self) -> None:
        """End the threads once their work has ended, without holding up the event loop."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # A thread cannot be cancelled: were the awaiting task cancelled, it would work on unseen. The caller
        # therefore never cancels; it stops the grant and waits for the thread to notice.
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._step(step, *args, **kwargs)
        )

    def _step(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with domain_errors():
            # Once, not each time: a root that vanishes is an unmounted disk, not a reason to begin anew.
            if not self._prepared:
                self.prepare()
            return step(*args, **kwargs)

    def _capacity(self) -> Capacity:
        found = os.statvfs(self.root)
        used = found.f_blocks - found.f_bfree
        return Capacity(found.f_blocks * found.f_frsize, used * found.f_frsize)


def open_driver(url: DriverUrl, threads: int) -> FileDriver:
    """Open ``file:PATH``, or ``file:PATH?allocate=full`` for volumes whose blocks are allocated when they grow.

    Raises:
        ConfigurationError: the path is missing or cannot be written, or the file system cannot allocate blocks.
    """
    allocate = url.options.pop("allocate", "sparse")
    if allocate not in ("sparse", "full"):
        raise ConfigurationError(f"allocate={allocate!r} is neither sparse nor full")
    # file:///srv/volumes is what other programs call file:/srv/volumes.
    root = url.place.removeprefix("//") if url.place.startswith("///") else url.place
    if not root or root.startswith("//"):
        raise ConfigurationError(f"file: needs a path, such as file:/srv/volumes, not {url.place!r}")
    driver = FileDriver(Path(root), threads, reserve=allocate == "full")
    try:
        driver.prepare()
    except OSError as error:
        cannot = "reserve room (allocate=full)" if error.errno == errno.EOPNOTSUPP else "be written"
        raise ConfigurationError(f"{driver.root} cannot {cannot}: {error.strerror}") from error
    return driver
