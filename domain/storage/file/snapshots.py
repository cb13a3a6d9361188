"""The file driver's snapshot operations; they run in its threads. A snapshot is a file that is never written to again.

A copy is made beside its target before the lock is taken, so a long copy blocks no other operation; publishing is one
link or one rename.
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
    """Snapshots as files in the directories of their volumes."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def take(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Copy the volume's file as it is now; never replace a snapshot."""
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
        """Replace the volume's file by a copy of the snapshot, in one step."""
        self._tree.refuse_if_stale(volume_id, grant)
        data, snapshot = self._tree.data(volume_id), self._tree.snapshot(volume_id, snapshot_id)
        if not snapshot.exists():
            raise SnapshotMissing
        with self._tree.draft(data, grant.fence) as draft:
            _copy(snapshot, draft, 0, grant)
            with self._tree.publishing("restore_snapshot", volume_id, grant):
                size = _match_replaced_file(draft, data)
                draft.replace(data)
                self._tree.sweep(data, grant.fence)
                sync_folder(data.parent)
                return size

    def clone(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Copy the snapshot to a new volume's file; never replace one."""
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
        """Remove the file and its drafts."""
        grant.check()
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._tree.publishing("delete_snapshot", snapshot_id, grant):
            snapshot.unlink(missing_ok=True)
            self._tree.sweep(snapshot, grant.fence)
            if snapshot.parent.is_dir():
                sync_folder(snapshot.parent)

    def seal(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the fence and remove drafts that can no longer be published; return the snapshot's size."""
        snapshot = self._tree.snapshot(volume_id, snapshot_id)
        with self._tree.sealing("seal_snapshot", snapshot_id, grant):
            self._tree.sweep(snapshot, grant.fence)
            return snapshot.stat().st_size if snapshot.exists() else None


def _copy(source: Path, draft: Path, min_size: int, grant: Grant) -> None:
    """Copy into a new file, extend it to ``min_size`` bytes if it is shorter, and sync it."""
    with opened(source, os.O_RDONLY) as source_handle, opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
        if copy(source_handle, handle, grant) < min_size:
            resize(handle, min_size)
        os.fsync(handle)


def _match_replaced_file(draft: Path, data: Path) -> int:
    """Make the draft at least as long as the file it replaces, with the same owner and mode; return its size."""
    if not data.exists():
        raise VolumeMissing
    replaced = data.stat()
    with opened(draft, os.O_RDWR) as handle:
        if os.fstat(handle).st_size < replaced.st_size:
            resize(handle, replaced.st_size)
        with suppress(PermissionError):  # an unprivileged process cannot give files to another owner
            os.fchown(handle, replaced.st_uid, replaced.st_gid)
        os.fchmod(handle, replaced.st_mode & 0o7777)
        os.fsync(handle)
        return os.fstat(handle).st_size
