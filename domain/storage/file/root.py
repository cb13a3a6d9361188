"""The root of a file backend: which one it is, and whether it is still there."""

import errno
import math
import os
import tempfile
from collections.abc import Collection
from contextlib import suppress
from typing import Final
from uuid import UUID

from domain.storage.context import Fence, Grant
from domain.storage.errors import BackendUnavailable
from domain.storage.file.disk import opened, require_reserving, sync, sync_folder
from domain.storage.file.tree import FileTree

_IDENTITY_BYTES: Final = 4096
_NO_JOB: Final = UUID(int=0)


class Root:
    """The root of one backend, and the identity that it must have."""

    def __init__(self, tree: FileTree, *, reserve: bool) -> None:
        self._tree = tree
        self._reserve = reserve
        self._accepted: str | None = None
        #: The identity file as it was when it was last read, if it is the accepted one: device, inode and time of the
        #: last write.
        self._seen: tuple[int, int, int] | None = None

    def initialize(self, identity: str, expected: Collection[UUID] = ()) -> str:
        """Create the directories and the identity file, unless they exist; return the identity that is there.

        Raises:
            BackendUnavailable: it should have volumes, and has none of those ``expected``.
        """
        tree = self._tree
        if expected and not any(tree.data(volume_id).exists() for volume_id in expected):
            raise BackendUnavailable(f"{tree.root} has none of the volumes of this backend: is its disk mounted?")
        for folder in (tree.root, tree.fences, tree.trash):
            folder.mkdir(parents=True, exist_ok=True)
        grant = Grant(_NO_JOB, Fence(0, os.getpid()), math.inf)
        with tree.draft(tree.identity, grant) as draft:
            draft.write_text(identity + "\n")
            with opened(draft, os.O_RDONLY) as handle:
                sync(handle, grant)
            with suppress(FileExistsError):
                os.link(draft, tree.identity)
        sync_folder(tree.root, grant)
        return self.read_identity() or ""

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
        """Return the identity, None if there is none. If it is the accepted one, the file must not change from now."""
        try:
            with opened(self._tree.identity, os.O_RDONLY) as handle:
                found, seen = os.read(handle, _IDENTITY_BYTES).decode().strip(), _version_of(os.fstat(handle))
        except FileNotFoundError:
            self._seen = None
            return None
        self._seen = seen if found == self._accepted else None
        return found

    def require(self) -> None:
        """Require that the root is still the accepted one.

        Raises:
            BackendUnavailable: it is gone, or another one.
        """
        try:
            seen = _version_of(self._tree.identity.stat())
        except OSError:
            seen = None
        if seen is None or seen != self._seen:
            raise BackendUnavailable(f"{self._tree.root} is not there any more, or is another one than before.")

    def _require_usable(self) -> None:
        root = self._tree.root
        try:
            for folder in (root, self._tree.fences, self._tree.trash):
                with tempfile.TemporaryFile(dir=folder):
                    pass
            if self._reserve:
                require_reserving(root)
        except OSError as error:
            problem = "cannot reserve blocks (allocate=full)" if error.errno == errno.EOPNOTSUPP else "is not writable"
            raise BackendUnavailable(f"{root} {problem}: {error.strerror}") from error


def _version_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns
