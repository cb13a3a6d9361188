"""The file driver's volume operations; they run in its threads."""

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.driver import Usage
from domain.storage.file.disk import opened, opened_data, resize, sync_folder
from domain.storage.file.reserve import grow_reserved, release_blocks
from domain.storage.file.tree import FileTree

ST_BLOCKS_UNIT = 512  # bytes; independent of the file system's own block size


class FileVolumes:
    """Volumes as files: sparse, or with all blocks reserved when they are created or grown."""

    def __init__(self, tree: FileTree, *, reserve: bool = False) -> None:
        self._tree = tree
        self._reserve = reserve

    def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Create an empty file; never replace one."""
        self._tree.refuse_if_stale(volume_id, grant)
        data = self._tree.data(volume_id)
        with self._tree.draft(data, grant.fence) as draft:
            with opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
                self._grow(handle, size, grant)
                os.fsync(handle)
            with self._tree.publishing("create", volume_id, grant):
                return self._tree.publish(draft, data, grant.fence)

    def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrink it."""
        grant.check()
        data = self._tree.data(volume_id)
        with self._tree.publishing("expand", volume_id, grant), opened_data(data) as handle:
            if os.fstat(handle).st_size < size:
                self._grow(handle, size, grant)
            os.fsync(handle)  # even if it has the size: an earlier attempt may have died right before its fsync
            return os.fstat(handle).st_size

    def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory to the trash in one step, then remove it from there."""
        grant.check()
        self._empty_trash(volume_id)
        with self._tree.publishing("delete", volume_id, grant):
            folder = self._tree.folder(volume_id)
            if folder.is_dir():
                fence = f"{grant.fence.version}-{grant.fence.epoch}"
                folder.rename(self._tree.trash / f"{folder.name}.{fence}")
            sync_folder(self._tree.trash)
            sync_folder(self._tree.root)
        self._empty_trash(volume_id)

    def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the volume's size."""
        with self._tree.sealing("seal", volume_id, grant):
            self._tree.sweep(self._tree.data(volume_id), grant.fence)
            usage = self._usage(volume_id)
            if usage and self._reserve:
                with opened_data(self._tree.data(volume_id)) as handle:
                    release_blocks(handle)
            return usage.size if usage else None

    def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return sizes and allocated bytes; volumes that cannot be measured are left out."""
        usages: dict[UUID, Usage] = {}
        for volume_id in volume_ids:
            with suppress(OSError):
                if (usage := self._usage(volume_id)) is not None:
                    usages[volume_id] = usage
        return usages

    def _usage(self, volume_id: UUID) -> Usage | None:
        try:
            status = self._tree.data(volume_id).stat()
        except FileNotFoundError:
            return None
        return Usage(status.st_size, status.st_blocks * ST_BLOCKS_UNIT)

    def _grow(self, handle: int, size: int, grant: Grant) -> None:
        if self._reserve:
            grow_reserved(handle, size, grant)
        else:
            resize(handle, size)

    def _empty_trash(self, volume_id: UUID) -> None:
        """Remove the volume's trash. The delete is published before that, so the grant is no longer checked."""
        for leftover in self._tree.trash.glob(f"{self._tree.folder(volume_id).name}.*"):
            with suppress(FileNotFoundError):  # another attempt is removing the same
                shutil.rmtree(leftover)
