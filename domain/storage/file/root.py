"""The root of a file backend: which one it is, and whether it is still there."""

import errno
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from domain.permissions import others_that_may_write
from domain.storage.context import Fence, Grant
from domain.storage.errors import BackendUnavailable
from domain.storage.file.disk import require_reserving, sync
from domain.storage.file.folder import Folder
from domain.storage.file.tree import FENCES, IDENTITY, TRASH, FileTree, data_of

_IDENTITY_BYTES: Final = 4096
_NO_JOB: Final = UUID(int=0)


class Root:
    """The root of one backend, and the identity that it must have."""

    def __init__(self, path: Path, *, reserve: bool) -> None:
        self.path = path
        self._reserve = reserve
        self._accepted: str | None = None
        #: The identity file as it was when it was last read, if it is the accepted one: device, inode and time of the
        #: last write.
        self._seen: tuple[int, int, int] | None = None

    def initialize(self, identity: str, expected: Collection[UUID] = ()) -> str:
        """Create the directories and the identity file, unless they exist; return the identity that is there.

        Raises:
            BackendUnavailable: it should have volumes, and has none of those ``expected``; or others may write to it.
        """
        if expected and not self._has_any(expected):
            raise BackendUnavailable(f"{self.path} has none of the volumes of this backend: is its disk mounted?")
        with Folder.make_root(self.path) as root:
            self._require_ours(root)
            for name in (FENCES, TRASH):
                root.make(name)
            self._write_identity(root, identity)
        return self.read_identity() or ""

    def _has_any(self, volume_ids: Collection[UUID]) -> bool:
        with suppress(FileNotFoundError), Folder.at(self.path) as root:
            return any(FileTree(root).size(data_of(volume_id)) is not None for volume_id in volume_ids)
        return False

    def _write_identity(self, root: Folder, identity: str) -> None:
        grant, draft = without_job(), f"{IDENTITY}.0-{os.getpid()}.tmp"
        root.unlink(draft, grant)
        try:
            with root.opened(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
                os.write(handle, f"{identity}\n".encode())
                sync(handle, grant)
            with suppress(FileExistsError):
                root.link(draft, IDENTITY)
        finally:
            root.unlink(draft, grant)
        root.sync(grant)

    def accept(self, identity: str) -> None:
        """Let the root be used as long as it has this identity.

        Raises:
            BackendUnavailable: it cannot be written to, or blocks cannot be reserved.
        """
        if identity != self._accepted:
            self._require_usable()
        self._accepted = identity
        self.read_identity()

    def read_identity(self) -> str | None:
        """Return the identity, None if there is none. If it is the accepted one, the file must not change from now.

        Raises:
            BackendUnavailable: others may write to the root.
        """
        try:
            with Folder.at(self.path) as root:
                self._require_ours(root)
                with root.opened(IDENTITY, os.O_RDONLY) as handle:
                    found, seen = os.read(handle, _IDENTITY_BYTES).decode().strip(), _version_of(os.fstat(handle))
        except FileNotFoundError:
            self._seen = None
            return None
        self._seen = seen if found == self._accepted else None
        return found

    @contextmanager
    def opened(self) -> Iterator[Folder]:
        """Open the root, if it is still the accepted one.

        Raises:
            BackendUnavailable: it is gone, or another one.
        """
        try:
            root = Folder.at(self.path)
        except OSError as error:
            raise self._lost() from error
        with root:
            try:
                status = root.status(IDENTITY)
            except OSError as error:
                raise self._lost() from error
            if status is None or _version_of(status) != self._seen:
                raise self._lost()
            yield root

    def require(self) -> None:
        """Require that the root is still the accepted one.

        Raises:
            BackendUnavailable: it is gone, or another one.
        """
        with self.opened():
            pass

    def _lost(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self.path} is not there any more, or is another one than before.")

    def _require_ours(self, root: Folder) -> None:
        others = others_that_may_write(os.fstat(root.handle))
        if others is not None:
            raise BackendUnavailable(f"{self.path} is not safe to use: {others}.")

    def _require_usable(self) -> None:
        try:
            with Folder.at(self.path) as root, root.folder(FENCES) as fences, root.folder(TRASH) as trash:
                for folder in (root, fences, trash):
                    with folder.temporary_file() as handle:
                        if self._reserve and folder is root:
                            require_reserving(handle)
        except OSError as error:
            problem = "cannot reserve blocks (allocate=full)" if error.errno == errno.EOPNOTSUPP else "is not writable"
            raise BackendUnavailable(f"{self.path} {problem}: {error.strerror}") from error


def without_job() -> Grant:
    """Return a grant for work that no job has asked for."""
    return Grant(_NO_JOB, Fence(0, os.getpid()), math.inf)


def _version_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns
