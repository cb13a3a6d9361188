"""The directory layout of the file driver: the names of files, drafts and trash in it, and what is found there.

It is read without locks: a result was true at some moment and may be out of date.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from uuid import UUID

from domain.storage.context import Fence, Grant
from domain.storage.driver import Leftover
from domain.storage.file.disk import sync_folder, unlink

_DRAFT = re.compile(r"(?P<target>.+)\.(?P<version>\d+)-(?P<epoch>\d+)\.tmp")


class FileTree:
    """The directories below the root.

    ``<volume>/data``, ``<volume>/snapshots/<snapshot>``, ``.fences/<volume or snapshot>``, ``.trash``, and the file
    ``.cistern``, which says what the root belongs to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.trash = self.root / ".trash"
        self.fences = self.root / ".fences"
        self.identity = self.root / ".cistern"

    def folder(self, volume_id: UUID) -> Path:
        """Return the directory of a volume."""
        return self.root / name(volume_id)

    def data(self, volume_id: UUID) -> Path:
        """Return the path of a volume's bytes."""
        return self.folder(volume_id) / "data"

    def snapshot(self, volume_id: UUID, snapshot_id: UUID) -> Path:
        """Return the path of a snapshot's bytes."""
        return self.folder(volume_id) / "snapshots" / name(snapshot_id)

    def volume_ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash, whatever created them, in ascending order of id."""
        names = (path.name.partition(".")[0] for path in chain(_entries(self.root), _entries(self.trash)))
        ids = filter(None, map(_parse_id, names))
        return _lowest((id_ for id_ in ids if after is None or id_ > after), limit)

    def snapshot_ids(self, volume_id: UUID) -> Iterator[UUID]:
        """Yield the snapshots of a volume."""
        return filter(None, (_parse_id(path.name) for path in _entries(self.folder(volume_id) / "snapshots")))

    def leftovers(self, volume_id: UUID) -> Iterator[Leftover]:
        """Yield the drafts of a volume and its snapshots, then its trash."""
        folder = self.folder(volume_id)
        for path in chain(_entries(folder), _entries(folder / "snapshots")):
            if match := _DRAFT.fullmatch(path.name):
                subject_id = volume_id if match["target"] == "data" else _parse_id(match["target"])
                if subject_id is not None:
                    yield Leftover(subject_id, str(path), trash=False)
        for path in self._trash_of(volume_id):
            yield Leftover(volume_id, str(path), trash=True)

    def remove(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove leftovers, and directories that are empty afterwards; other processes may remove the same ones."""
        for leftover in leftovers:
            with suppress(FileNotFoundError):
                shutil.rmtree(leftover.path) if leftover.trash else Path(leftover.path).unlink()
        folder = self.folder(volume_id)
        if not self.data(volume_id).exists():
            for directory in (folder / "snapshots", folder):
                with suppress(OSError):  # not empty, or already removed
                    directory.rmdir()

    @contextmanager
    def draft(self, target: Path, grant: Grant) -> Iterator[Path]:
        """Yield the path of a draft of this attempt; in the end remove the draft, and its directory if that is empty.

        The file does not exist yet. Publishing links it to another name, so removing the draft then is harmless.
        """
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f"{target.name}.{grant.fence.version}-{grant.fence.epoch}.tmp")
        # Unlink, do not truncate: after a crash right after publishing, the draft is a second name of the target.
        unlink(draft, grant)
        try:
            yield draft
        finally:
            unlink(draft, grant)
            with suppress(OSError):  # usually not empty: it contains the target
                target.parent.rmdir()

    def publish(self, draft: Path, target: Path, grant: Grant) -> int:
        """Link the draft to the target's name, unless the target exists; return the target's size in bytes."""
        if not target.exists():
            os.link(draft, target)  # unlike a rename, a link never replaces
        self.sweep_drafts(target, grant)
        sync_folder(target.parent, grant)
        sync_folder(target.parent.parent, grant)  # the folder itself may be new
        return target.stat().st_size

    def sweep_drafts(self, target: Path, grant: Grant) -> None:
        """Remove the drafts that can no longer be published: those of this attempt and of earlier ones."""
        for entry in list(_entries(target.parent)):
            match = _DRAFT.fullmatch(entry.name)
            if not match or match["target"] != target.name:
                continue
            if Fence(int(match["version"]), int(match["epoch"])) <= grant.fence:
                unlink(entry, grant)

    def move_to_trash(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory, if there is one, to the trash in one step."""
        folder = self.folder(volume_id)
        if folder.is_dir():
            folder.rename(self.trash / f"{folder.name}.{grant.fence.version}-{grant.fence.epoch}")
        sync_folder(self.trash, grant)
        sync_folder(self.root, grant)

    def empty_trash(self, volume_id: UUID, grant: Grant) -> None:
        """Remove the volume's trash. The delete is published before that, so the grant is no longer checked."""
        for path in self._trash_of(volume_id):
            for file in path.glob("**/*"):
                if not file.is_dir():
                    unlink(file, grant)  # one by one: each may take long
            with suppress(FileNotFoundError):  # another attempt is removing the same
                shutil.rmtree(path)

    def _trash_of(self, volume_id: UUID) -> Iterator[Path]:
        return self.trash.glob(f"{name(volume_id)}.*")


def name(subject_id: UUID) -> str:
    """Return the file name for an id. It is built from the number, so that a str passed by mistake cannot be a path."""
    return str(UUID(int=subject_id.int))


def _entries(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:  # streams; `iterdir` would load all names of a large directory at once
            yield from map(Path, entries)
    except FileNotFoundError:
        return


def _parse_id(text: str) -> UUID | None:
    """Return the id in a name, None unless this driver would give that name: it uses one spelling of an id."""
    with suppress(ValueError):
        if str(parsed := UUID(text)) == text:
            return parsed
    return None


def _lowest(ids: Iterable[UUID], limit: int) -> Sequence[UUID]:
    """Return the ``limit`` lowest ids without duplicates; hold at most twice as many in memory."""
    lowest: set[UUID] = set()
    for id_ in ids:
        lowest.add(id_)
        if len(lowest) > 2 * limit:
            lowest = set(sorted(lowest)[:limit])
    return sorted(lowest)[:limit]
