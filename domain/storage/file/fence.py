"""The locks and fence records of all volumes and snapshots, and the protocol by which each of them changes.

The lock and the fence record of a subject are one file, which is kept for as long as anything may still work on the
subject (see `domain.fence_retention`). So the fence of a deleted volume is kept, and two processes can never hold locks
on two different files for the same volume.

Every effect goes through `Fences.publishing`: under the lock of its subject, fenced, and synced to disk before it is
reported. A crash therefore leaves the old state or the new one, and at most a draft that the next change removes.
Outside of it, only drafts and trash are written or removed.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from uuid import UUID

from domain.storage.context import MAX_FENCE, Fence, Grant, refuse_stale
from domain.storage.errors import PermanentStorageError, StorageBusy
from domain.storage.file.disk import sync
from domain.storage.file.folder import Folder
from domain.storage.file.tree import FENCES, name, parse_id

LOCK_TIMEOUT = 1.0
LOCK_POLL_SECONDS = 0.005
RECORD_BYTES = 64
_RECORD: Final = re.compile(rb"([0-9]+) ([0-9]+)\n")


class Fences:
    """The lock files in the directory ``.fences`` of a root, one for each volume or snapshot."""

    def __init__(self, root: Folder, require_place: Callable[[], None]) -> None:
        """``require_place`` raises unless the root is still that of the backend; it is called before an effect."""
        self._root = root
        self._require_place = require_place

    def last(self, subject_id: UUID) -> Fence | None:
        """Read the highest fence without the lock; it may have risen by the time this returns."""
        record = name(subject_id)
        with (
            suppress(FileNotFoundError),
            self._root.folder(FENCES) as folder,
            folder.opened(record, os.O_RDONLY) as handle,
        ):
            return FenceRecord(handle, folder, record).read()
        return None

    def older_than(self, days: int) -> list[UUID]:
        """Return the subjects whose record was last written more than ``days`` days ago."""
        before = time.time() - days * 86_400
        with self._root.folder(FENCES) as folder:
            found = ((parse_id(entry.name), entry.stat(follow_symlinks=False)) for entry in folder.entries())
            return [id_ for id_, status in found if id_ is not None and status.st_mtime < before]

    def remove(self, subject_ids: Iterable[UUID], grant: Grant) -> None:
        """Remove the records of subjects on which nothing will work again."""
        with self._root.folder(FENCES) as folder:
            for subject_id in subject_ids:
                folder.unlink(name(subject_id), grant)

    def refuse_if_stale(self, subject_id: UUID, grant: Grant) -> None:
        """Refuse a stopped or stale attempt before it does any work that it could not publish."""
        grant.check()
        with self._locked(subject_id) as record:
            refuse_stale(record.read(), grant.fence)

    @contextmanager
    def publishing(
        self, operation: str, subject_id: UUID, grant: Grant, *, seal: bool = False
    ) -> Iterator["FenceRecord"]:
        """Run the body as the single effect of this attempt, under the lock and behind the fence.

        The fence is written to disk before the effect. After a crash between the two, the next attempt has a higher
        fence and repeats the effect; an effect without its fence could be overwritten by an earlier attempt.

        ``seal``: do not check the grant, for sealing is how a stopped attempt is brought to an end. The body sees a
        state that no earlier attempt can change.
        """
        with self._locked(subject_id) as record:
            refuse_stale(record.read(), grant.fence)
            if not seal:
                grant.check()
            self._require_place()
            record.write(grant)
            yield record
            grant.on_published(operation, subject_id)

    @contextmanager
    def _locked(self, subject_id: UUID) -> Iterator["FenceRecord"]:
        """Hold the exclusive lock of a volume or snapshot.

        flock belongs to the open file description. The file is opened anew for every lock, so the lock excludes other
        threads as well as other processes, and the kernel releases it when its process is killed.

        Raises:
            StorageBusy: another holder kept the lock for `LOCK_TIMEOUT` seconds.
        """
        record = name(subject_id)
        with self._root.folder(FENCES) as folder, folder.opened(record, os.O_RDWR | os.O_CREAT) as handle:
            _lock(handle)
            yield FenceRecord(handle, folder, record)


class FenceRecord:
    """The highest fence of one volume or snapshot, in its open lock file."""

    def __init__(self, handle: int, folder: Folder, record: str) -> None:
        #: The open file, which has the lock.
        self.handle = handle
        self._folder = folder
        self._path = folder.path / record

    def read(self) -> Fence | None:
        """Return the highest fence so far, None before the first.

        Raises:
            PermanentStorageError: the record is damaged. It must not be taken for an absent one.
        """
        text = os.pread(self.handle, RECORD_BYTES, 0)
        if not text:
            return None
        found = _RECORD.fullmatch(text)
        fence = found and Fence(int(found[1]), int(found[2]))
        if not fence or max(fence) > MAX_FENCE:
            raise PermanentStorageError(f"The fence record {self._path} is damaged.")
        return fence

    def write(self, grant: Grant) -> None:
        """Write the grant's fence in place and sync it; a short write within one disk sector is not torn by a crash."""
        first = os.fstat(self.handle).st_size == 0
        os.pwrite(self.handle, f"{grant.fence.version:020d} {grant.fence.epoch:020d}\n".encode(), 0)
        sync(self.handle, grant)
        if first:
            self._folder.sync(grant)


def _lock(handle: int) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageBusy from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return
