"""What the file driver's threads do to volumes."""

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

BLOCK = 512  # what st_blocks counts in, whatever the file system's own block size is


class FileVolumes:
    """Volumes as files: sparse ones, or with all their blocks reserved when they are made and when they grow."""

    def __init__(self, tree: FileTree, *, reserve: bool = False) -> None:
        self._tree = tree
        self._reserve = reserve

    def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Make an empty file; never replaces one."""
        self._tree.refuse_if_stale(volume_id, grant)
        data = self._tree.data(volume_id)
        with self._tree.draft(data, grant.fence) as draft:
            with opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
                self._grow(handle, size, grant)
                os.fsync(handle)
            with self._tree.publishing("create", volume_id, grant):
                return self._tree.publish(draft, data, grant.fence)

    def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow the file in place; never shrinks it."""
        grant.check()
        data = self._tree.data(volume_id)
        with self._tree.publishing("expand", volume_id, grant), opened_data(data) as handle:
            if os.fstat(handle).st_size < size:
                self._grow(handle, size, grant)
            os.fsync(handle)  # even if it has the size: an earlier attempt may have died right before this
            return os.fstat(handle).st_size

    def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory out of sight in one step, then remove it."""
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
        """Raise the fence and sweep what can no longer be published; returns the size found."""
        with self._tree.sealing("seal", volume_id, grant):
            self._tree.sweep(self._tree.data(volume_id), grant.fence)
            usage = self._usage(volume_id)
            if usage and self._reserve:
                with opened_data(self._tree.data(volume_id)) as handle:
                    release_blocks(handle)
            return usage.size if usage else None

    def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Report sizes and allocated bytes; what cannot be looked at is left out."""
        found: dict[UUID, Usage] = {}
        for volume_id in volume_ids:
            with suppress(OSError):
                if (usage := self._usage(volume_id)) is not None:
                    found[volume_id] = usage
        return found

    def _usage(self, volume_id: UUID) -> Usage | None:
        try:
            found = self._tree.data(volume_id).stat()
        except FileNotFoundError:
            return None
        return Usage(found.st_size, found.st_blocks * BLOCK)

    def _grow(self, handle: int, size: int, grant: Grant) -> None:
        if self._reserve:
            grow_reserved(handle, size, grant)
        else:
            resize(handle, size)

    def _empty_trash(self, volume_id: UUID) -> None:
        """Remove what is left of the volume, after publishing, so no longer under the grant."""
        for leftover in self._tree.trash.glob(f"{self._tree.folder(volume_id).name}.*"):
            with suppress(FileNotFoundError):  # another attempt is clearing away the same
                shutil.rmtree(leftover)
