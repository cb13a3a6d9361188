"""What the file driver's threads do with snapshots: each is a file that is copied once and never written to again.

Copies are made beside their targets before any lock is taken, however long they are; publishing is one link
or one rename.
"""

import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.errors import SnapshotMissing, VolumeMissing
from domain.storage.file.copying import copy
from domain.storage.file.disk import opened, resize, sync_folder
from domain.storage.file.tree import FileTree


class FileSnapshots:
    """Snapshots beside the volumes that they were taken of."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def take(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Copy the volume's file, as it is now; never replaces a snapshot."""
        self._tree.refuse_if_stale(snapshot_id, grant)
        data, snapshot = self._tree.data(volume_id), self._tree.snapshot(volume_id, snapshot_id)
        if not data.exists() and not snapshot.exists():
            raise VolumeMissing
        with self._tree.draft(snapshot, grant.fence) as draft:
            if not snapshot.exists():
                _copy(data, draft, 0, grant)
            with self._tree.publishing("take_snapshot", snapshot_id, grant):
                return self._tree.publish(draft, snapshot, grant.fence)

    def restore(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Put a copy of the snapshot in the place of the volume's file, in one step."""
        self._tree.refuse_if_stale(volume_id, grant)
        data, snapshot = self._tree.data(volume_id), self._tree.snapshot(volume_id, snapshot_id)
        if not snapshot.exists():
            raise SnapshotMissing
        with self._tree.draft(data, grant.fence) as draft:
            _copy(snapshot, draft, 0, grant)
            with self._tree.publishing("restore_snapshot", volume_id, grant):
                size = _assume_shape(draft, data)
                draft.replace(data)
                self._tree.sweep(data, grant.fence)
                sync_folder(data.parent)
                return size

    def clone(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Copy the snapshot to a new volume's file; never replaces one."""
        self._tree.refuse_if_stale(clone_id, grant)
        data, snapshot = self._tree.data(clone_id), self._tree.snapshot(volume_id, snapshot_id)
        if not data.exists() and not snapshot.exists():
            raise SnapshotMissing
        with self._tree.draft(data, grant.fence) as draft:
            if not data.exists():
                _copy(snapshot, draft, size, grant)
            with self._tree.publishing("clone_snapshot", clone_id, grant):
                return self._tree.publish(draft, data, grant.fence)

    def delete(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the file and the drafts of it."""
        grant.check()
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._tree.publishing("delete_snapshot", snapshot_id, grant):
            snapshot.unlink(missing_ok=True)
            self._tree.sweep(snapshot, grant.fence)
            if snapshot.parent.is_dir():
                sync_folder(snapshot.parent)

    def seal(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and sweep what can no longer be published; returns the size found."""
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._tree.sealing("seal_snapshot", snapshot_id, grant):
            self._tree.sweep(snapshot, grant.fence)
            return snapshot.stat().st_size if snapshot.exists() else None


def _copy(source: Path, draft: Path, at_least: int, grant: Grant) -> None:
    """Copy into a new file, longer than its source if need be, and have it on the disk."""
    with opened(source, os.O_RDONLY) as read, opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as written:
        if copy(read, written, grant) < at_least:
            resize(written, at_least)
        os.fsync(written)


def _assume_shape(draft: Path, data: Path) -> int:
    """Make the draft as long as the file it is to replace, and give it that one's owner and mode."""
    if not data.exists():
        raise VolumeMissing
    present = data.stat()
    with opened(draft, os.O_RDWR) as handle:
        if os.fstat(handle).st_size < present.st_size:
            resize(handle, present.st_size)
        with suppress(PermissionError):  # an owner that this process cannot give away files to
            os.fchown(handle, present.st_uid, present.st_gid)
        os.fchmod(handle, present.st_mode & 0o7777)
        os.fsync(handle)
        return os.fstat(handle).st_size
