"""A root that is open for one operation, and what several operations of the driver have in common."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from uuid import UUID

from domain.errors import StorageError
from domain.storage.context import Grant
from domain.storage.driver import Taken
from domain.storage.errors import VolumeMissing
from domain.storage.file import filesystem
from domain.storage.file.consistency import CopyConditions, copy_watched, recorded
from domain.storage.file.disk import copy_file, match_replaced_file
from domain.storage.file.fence import Fences
from domain.storage.file.folder import Folder
from domain.storage.file.tree import FileTree, data_of, snapshot_of


class Opened:
    """A root that is open for one operation: its files, and its fences."""

    def __init__(self, root: Folder, require_place: Callable[[], None]) -> None:
        self.tree = FileTree(root)
        self.fences = Fences(root, require_place)

    def copy_once(
        self,
        operation: str,
        subject_id: UUID,
        source: PurePosixPath,
        target: PurePosixPath,
        grant: Grant,
        *,
        copy: Callable[[int, int], object],
        missing: type[StorageError],
    ) -> int:
        """Publish what ``copy`` makes of a file, unless the target exists; return the target's size in bytes."""
        self.fences.refuse_if_stale(subject_id, grant)
        if self.tree.size(target) is None and self.tree.size(source) is None:
            raise missing
        with self.tree.draft(target, grant) as draft:
            if self.tree.size(target) is None:
                with self.tree.opened(source, os.O_RDONLY) as handle:
                    copy(handle, draft.create())
            with self.fences.publishing(operation, subject_id, grant):
                return draft.publish()

    def take(self, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool) -> Taken:
        """Publish a copy of a volume's file as a snapshot, unless that exists."""
        data, snapshot = data_of(volume_id), snapshot_of(volume_id, snapshot_id)
        found = CopyConditions(shared=False, was_open=None)

        def copy(source: int, draft: int) -> None:
            nonlocal found
            found = copy_watched(source, draft, grant, allow_torn=allow_torn)

        size = self.copy_once("take_snapshot", snapshot_id, data, snapshot, grant, copy=copy, missing=VolumeMissing)
        with suppress(FileNotFoundError), self.tree.opened(snapshot, os.O_RDONLY) as handle:
            found = recorded(handle) or found
        return Taken(size, found.shared, found.was_open)

    def replace(
        self,
        operation: str,
        volume_id: UUID,
        source: PurePosixPath,
        grant: Grant,
        *,
        missing: type[StorageError],
        in_use: bool = False,
    ) -> int:
        """Put a copy of a file in the place of a volume's, with the same owner and mode; return its size in bytes.

        ``in_use``: do so even if another process has the volume's file open.
        """
        self.fences.refuse_if_stale(volume_id, grant)
        data = data_of(volume_id)
        if self.tree.size(source) is None:
            raise missing
        with self.tree.draft(data, grant) as draft:
            handle = draft.create()
            with self.tree.opened(source, os.O_RDONLY) as opened:
                copy_file(opened, handle, 0, grant)
            with self.fences.publishing(operation, volume_id, grant):
                if self.tree.size(data) is None:
                    raise VolumeMissing
                with draft.replacing(in_use=in_use) as replaced:
                    return match_replaced_file(handle, replaced, grant)

    def grow_ext4(self, volume_id: UUID, grant: Grant) -> None:
        """Grow the file system in a volume's file, in place, unless another process has the file open.

        Who opens it after that is not noticed: the tools have to open it too.
        """
        data = data_of(volume_id)
        with self.fences.publishing("grow_filesystem", volume_id, grant) as record:
            if self.tree.size(data) is None:
                raise VolumeMissing
            with self.tree.unused(data, grant):
                pass
            with self.tree.opened(data, os.O_RDWR) as handle:
                filesystem.grow_ext4(handle, record.handle, grant)
