"""The directory layout of the file driver, and the protocol by which a volume or snapshot in it changes.

Every effect goes through `publishing`: under the lock of its subject, fenced, and synced to disk before it is reported.
A crash therefore leaves the old state or the new one, and at most a draft that the next change removes. Outside of it,
only fences are raised (`sealing`), and drafts and trash are written or removed.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import UUID

from domain.storage.context import Fence, Grant, refuse_stale
from domain.storage.file.disk import sync_folder
from domain.storage.file.fence import FenceRecord, last_fence, locked


class FileTree:
    """The directories below the root.

    ``<volume>/data``, ``<volume>/snapshots/<snapshot>``, ``.fences/<volume or snapshot>`` and ``.trash``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.trash = self.root / ".trash"
        self._fences = self.root / ".fences"

    def prepare(self) -> None:
        """Create the directories and check that they are writable.

        Raises:
            OSError: a directory cannot be created or written to.
        """
        for folder in (self.root, self._fences, self.trash):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        sync_folder(self.root)

    def folder(self, volume_id: UUID) -> Path:
        """Return the directory of a volume."""
        return self.root / name(volume_id)

    def data(self, volume_id: UUID) -> Path:
        """Return the path of a volume's bytes."""
        return self.folder(volume_id) / "data"

    def snapshot(self, volume_id: UUID, snapshot_id: UUID) -> Path:
        """Return the path of a snapshot's bytes."""
        return self.folder(volume_id) / "snapshots" / name(snapshot_id)

    def fence(self, subject_id: UUID) -> Fence | None:
        """Return the highest fence so far, read without the lock."""
        return last_fence(self._fences / name(subject_id))

    def refuse_if_stale(self, subject_id: UUID, grant: Grant) -> None:
        """Refuse a stopped or stale attempt before it does any work that it could not publish."""
        grant.check()
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)

    @contextmanager
    def publishing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        """Run the body as the single effect of this attempt, under the lock and behind the fence.

        The fence is written to disk before the effect. After a crash between the two, the next attempt has a higher
        fence and repeats the effect; an effect without its fence could be overwritten by an earlier attempt.
        """
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)
            grant.check()
            record.write(grant.fence)
            yield
            grant.on_published(operation, subject_id)

    @contextmanager
    def sealing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        """Raise the fence, then run the body, which sees a state that no earlier attempt can change.

        Does not check the grant: sealing is how a stopped attempt is brought to an end.
        """
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)
            record.write(grant.fence)
            yield
            grant.on_published(operation, subject_id)

    @contextmanager
    def draft(self, target: Path, fence: Fence) -> Iterator[Path]:
        """Yield the path of a draft of this attempt; in the end remove the draft, and its directory if that is empty.

        The file does not exist yet. Publishing links it to another name, so removing the draft then is harmless.
        """
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f"{target.name}.{fence.version}-{fence.epoch}.tmp")
        # Unlink, do not truncate: after a crash right after publishing, the draft is a second name of the target.
        draft.unlink(missing_ok=True)
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)
            with suppress(OSError):  # usually not empty: it contains the target
                target.parent.rmdir()

    def publish(self, draft: Path, target: Path, fence: Fence) -> int:
        """Link the draft to the target's name, unless the target exists; return the target's size."""
        if not target.exists():
            os.link(draft, target)  # unlike a rename, a link never replaces
        self.sweep(target, fence)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)  # the folder itself may be new
        return target.stat().st_size

    def sweep(self, target: Path, fence: Fence) -> None:
        """Remove the drafts that can no longer be published: those of this attempt and of earlier ones."""
        pattern = re.compile(re.escape(target.name) + r"\.(\d+)-(\d+)\.tmp")
        for entry in list(target.parent.iterdir()) if target.parent.is_dir() else ():
            match = pattern.fullmatch(entry.name)
            if match and Fence(int(match[1]), int(match[2])) <= fence:
                entry.unlink(missing_ok=True)

    def _lock(self, subject_id: UUID) -> AbstractContextManager[FenceRecord]:
        return locked(self._fences / name(subject_id))


def name(subject_id: UUID) -> str:
    """Return the file name for an id. It is built from the number, so that a str passed by mistake cannot be a path."""
    return str(UUID(int=subject_id.int))
