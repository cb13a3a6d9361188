"""Volumes as sparse files, one directory per volume, for as many workers as share the file system.

Every change goes through `_publishing`: under the volume's lock, fenced, and on the disk before it is told.
A crash therefore leaves the old state or the new one, and at most a temporary file that the next one sweeps.
"""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

from domain.storage.disk import domain_errors, opened, opened_data, resize, sync_folder
from domain.storage.driver import Capacity, Fence, Grant, Usage
from domain.storage.fence import FenceRecord, locked, refuse_stale

P = ParamSpec("P")
T = TypeVar("T")

BLOCK = 512  # what st_blocks counts in, whatever the file system's own block size is
DRAFT = re.compile(r"data\.(\d+)-(\d+)\.tmp")


class FileDriver:
    """Keeps ``root/<volume>/data``, beside ``root/.fences/<volume>`` and ``root/.trash``."""

    def __init__(self, root: Path, threads: int) -> None:
        self.root = root.absolute()
        self._fences = self.root / ".fences"
        self._trash = self.root / ".trash"
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self._prepared = False

    def prepare(self) -> None:
        """Make the directories and try whether they can be written; raises the OSError it meets."""
        for folder in (self.root, self._fences, self._trash):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        sync_folder(self.root)
        self._prepared = True

    def path(self, volume_id: UUID) -> str:
        """Where the volume's bytes are; the file may not exist yet."""
        return str(self._data(volume_id))

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Make an empty sparse file; never replaces one."""
        return await self._run(self._create, volume_id, size, grant)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrinks it."""
        return await self._run(self._expand, volume_id, size, grant)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory out of sight in one step, then remove it."""
        await self._run(self._delete, volume_id, grant)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, whether or not the attempt was stopped; returns the size found."""
        return await self._run(self._seal, volume_id, grant)

    async def measure(self, volume_id: UUID) -> Usage | None:
        """Report size and allocated bytes, as the file system tells them."""
        return await self._run(self._measure, volume_id)

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

    def _create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        grant.check()
        with self._lock(volume_id) as record:
            refuse_stale(record.read(), grant.fence)  # before the work, so that it is not done in vain
        with self._draft(volume_id, grant.fence) as draft:
            with opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
                resize(handle, size)
                os.fsync(handle)
            with self._publishing("create", volume_id, grant):
                data = self._data(volume_id)
                with suppress(FileExistsError):  # a link never replaces, where a rename would
                    os.link(draft, data)
                _sweep(data.parent, grant.fence)
                sync_folder(data.parent)
                sync_folder(self.root)
                return data.stat().st_size

    def _expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        grant.check()
        with self._publishing("expand", volume_id, grant), opened_data(self._data(volume_id)) as handle:
            if os.fstat(handle).st_size < size:
                resize(handle, size)
            os.fsync(handle)  # even if it has the size: an earlier attempt may have died right before this
            return os.fstat(handle).st_size

    def _delete(self, volume_id: UUID, grant: Grant) -> None:
        grant.check()
        self._empty_trash(volume_id)
        with self._publishing("delete", volume_id, grant):
            folder = self._folder(volume_id)
            if folder.is_dir():
                fence = f"{grant.fence.version}-{grant.fence.rings}"
                folder.rename(self._trash / f"{folder.name}.{fence}")
            sync_folder(self._trash)
            sync_folder(self.root)
        self._empty_trash(volume_id)

    def _seal(self, volume_id: UUID, grant: Grant) -> int | None:
        with self._lock(volume_id) as record:
            refuse_stale(record.read(), grant.fence)
            record.write(grant.fence)
            usage = self._measure(volume_id)
            grant.published("seal", volume_id)
            return usage.size if usage else None

    def _measure(self, volume_id: UUID) -> Usage | None:
        try:
            found = self._data(volume_id).stat()
        except FileNotFoundError:
            return None
        return Usage(found.st_size, found.st_blocks * BLOCK)

    def _capacity(self) -> Capacity:
        found = os.statvfs(self.root)
        used = found.f_blocks - found.f_bfree
        return Capacity(found.f_blocks * found.f_frsize, used * found.f_frsize)

    @contextmanager
    def _publishing(self, operation: str, volume_id: UUID, grant: Grant) -> Iterator[None]:
        """Let the body be the one effect of this attempt.

        The fence is on the disk before the effect: after a crash in between, the next attempt has a higher
        fence and does it again, whereas an effect without its fence could be overtaken by an older attempt.
        """
        with self._lock(volume_id) as record:
            refuse_stale(record.read(), grant.fence)
            grant.check()
            record.write(grant.fence)
            yield
            grant.published(operation, volume_id)

    def _lock(self, volume_id: UUID) -> AbstractContextManager[FenceRecord]:
        return locked(self._fences / _name(volume_id))

    @contextmanager
    def _draft(self, volume_id: UUID, fence: Fence) -> Iterator[Path]:
        """Name a temporary file of this attempt alone; nothing of it stays if it is not published."""
        folder = self._folder(volume_id)
        folder.mkdir(exist_ok=True)
        draft = folder / f"data.{fence.version}-{fence.rings}.tmp"
        # Never truncated: left over from a crash right after publishing, it is a second name of the data.
        draft.unlink(missing_ok=True)
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)
            with suppress(OSError):  # it holds the volume, most of the time
                folder.rmdir()

    def _empty_trash(self, volume_id: UUID) -> None:
        """Remove what is left of the volume, after publishing, so no longer under the grant."""
        for leftover in self._trash.glob(f"{_name(volume_id)}.*"):
            with suppress(FileNotFoundError):  # another attempt is clearing away the same
                shutil.rmtree(leftover)

    def _folder(self, volume_id: UUID) -> Path:
        return self.root / _name(volume_id)

    def _data(self, volume_id: UUID) -> Path:
        return self._folder(volume_id) / "data"


def _name(volume_id: UUID) -> str:
    # Through the number, so that a string that slipped past the types cannot become a path.
    return str(UUID(int=volume_id.int))


def _sweep(folder: Path, fence: Fence) -> None:
    """Remove the drafts that can no longer be published: this attempt's own and all before it."""
    for draft in folder.iterdir():
        match = DRAFT.fullmatch(draft.name)
        if match and Fence(int(match[1]), int(match[2])) <= fence:
            draft.unlink(missing_ok=True)
