"""Where the file driver keeps what, and the one way in which anything there changes.

Every change goes through `publishing`: under the lock of what is changed, fenced, and on the disk before it is
told. A crash therefore leaves the old state or the new one, and at most a draft that the next change sweeps.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import UUID

from domain.storage.context import Fence, Grant
from domain.storage.file.disk import sync_folder
from domain.storage.file.fence import FenceRecord, last_fence, locked, refuse_stale


class FileTree:
    """``<volume>/data`` and ``<volume>/snapshots/<snapshot>``, beside ``.fences/<either>`` and ``.trash``."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.trash = self.root / ".trash"
        self._fences = self.root / ".fences"

    def prepare(self) -> None:
        """Make the directories and try whether they can be written; raises the OSError it meets."""
        for folder in (self.root, self._fences, self.trash):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        sync_folder(self.root)

    def folder(self, volume_id: UUID) -> Path:
        """Where everything of a volume is."""
        return self.root / name(volume_id)

    def data(self, volume_id: UUID) -> Path:
        """Where a volume's bytes are."""
        return self.folder(volume_id) / "data"

    def snapshot(self, volume_id: UUID, snapshot_id: UUID) -> Path:
        """Where a snapshot's bytes are."""
        return self.folder(volume_id) / "snapshots" / name(snapshot_id)

    def fence(self, subject_id: UUID) -> Fence | None:
        """The highest fence so far, as seen in passing."""
        return last_fence(self._fences / name(subject_id))

    def refuse_if_stale(self, subject_id: UUID, grant: Grant) -> None:
        """Refuse an attempt that is stopped or late before it begins, so that no work is done in vain."""
        grant.check()
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)

    @contextmanager
    def publishing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        """Let the body be the one effect of this attempt.

        The fence is on the disk before the effect: after a crash in between, the next attempt has a higher
        fence and does it again, whereas an effect without its fence could be overtaken by an older attempt.
        """
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)
            grant.check()
            record.write(grant.fence)
            yield
            grant.publishing(operation, subject_id)

    @contextmanager
    def sealing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        """Let the body look at what no earlier attempt can change any more; also for a stopped attempt."""
        with self._lock(subject_id) as record:
            refuse_stale(record.read(), grant.fence)
            record.write(grant.fence)
            yield
            grant.publishing(operation, subject_id)

    @contextmanager
    def draft(self, target: Path, fence: Fence) -> Iterator[Path]:
        """Name a temporary file of this attempt alone; nothing of it stays if it is not published."""
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f"{target.name}.{fence.version}-{fence.epoch}.tmp")
        # Never truncated: left over from a crash right after publishing, it is a second name of the target.
        draft.unlink(missing_ok=True)
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)
            with suppress(OSError):  # it holds the target, most of the time
                target.parent.rmdir()

    def publish(self, draft: Path, target: Path, fence: Fence) -> int:
        """Give the draft its name, unless there is one by that name already; returns the size."""
        if not target.exists():
            os.link(draft, target)  # a link never replaces, where a rename would
        self.sweep(target, fence)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)  # which may have got the folder just now
        return target.stat().st_size

    def sweep(self, target: Path, fence: Fence) -> None:
        """Remove the drafts that can no longer be published: this attempt's own and all before it."""
        pattern = re.compile(re.escape(target.name) + r"\.(\d+)-(\d+)\.tmp")
        for entry in list(target.parent.iterdir()) if target.parent.is_dir() else ():
            match = pattern.fullmatch(entry.name)
            if match and Fence(int(match[1]), int(match[2])) <= fence:
                entry.unlink(missing_ok=True)

    def _lock(self, subject_id: UUID) -> AbstractContextManager[FenceRecord]:
        return locked(self._fences / name(subject_id))


def name(subject_id: UUID) -> str:
    """Name a file after an id, through its number: a string that slipped past the types cannot become a path."""
    return str(UUID(int=subject_id.int))
