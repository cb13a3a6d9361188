"""Lists what is stored on disk, no matter who created it; `domain.check` compares it with the database."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from uuid import UUID

from domain.storage.driver import Leftover, StoredObject, StoredVolume
from domain.storage.file.tree import FileTree

_DRAFT = re.compile(r"(.+)\.\d+-\d+\.tmp")


class FileInventory:
    """Reads the tree without locks: a result was true at some moment and may be out of date."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def page(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash, in ascending order of id."""
        return _lowest((id_ for id_ in self._ids() if after is None or id_ > after), limit)

    def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return sizes, fences and leftovers."""
        folder = self._tree.folder(volume_id)
        ids = {*snapshot_ids, *filter(None, (_parse_id(path.name) for path in _entries(folder / "snapshots")))}
        return StoredVolume(
            self._stored(volume_id, self._tree.data(volume_id)),
            {id_: self._stored(id_, self._tree.snapshot(volume_id, id_)) for id_ in ids},
            [*self._drafts(volume_id), *self._trash(volume_id)],
        )

    def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove leftovers, and directories that are empty afterwards; other processes may remove the same ones."""
        for leftover in leftovers:
            with suppress(FileNotFoundError):
                shutil.rmtree(leftover.path) if leftover.trash else Path(leftover.path).unlink()
        folder = self._tree.folder(volume_id)
        if not self._tree.data(volume_id).exists():
            for directory in (folder / "snapshots", folder):
                with suppress(OSError):  # not empty, or already removed
                    directory.rmdir()

    def _ids(self) -> Iterator[UUID]:
        for path in chain(_entries(self._tree.root), _entries(self._tree.trash)):
            if (volume_id := _parse_id(path.name.partition(".")[0])) is not None:
                yield volume_id

    def _stored(self, subject_id: UUID, path: Path) -> StoredObject:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = None
        return StoredObject(size, self._tree.fence(subject_id))

    def _drafts(self, volume_id: UUID) -> Iterator[Leftover]:
        folder = self._tree.folder(volume_id)
        for path in (*_entries(folder), *_entries(folder / "snapshots")):
            match = _DRAFT.fullmatch(path.name)
            subject_id = volume_id if match and match[1] == "data" else _parse_id(match[1]) if match else None
            if subject_id is not None:
                yield Leftover(subject_id, str(path), trash=False)

    def _trash(self, volume_id: UUID) -> Iterator[Leftover]:
        for path in self._tree.trash.glob(f"{self._tree.folder(volume_id).name}.*"):
            yield Leftover(volume_id, str(path), trash=True)


def _entries(folder: Path) -> Iterable[Path]:
    try:
        with os.scandir(folder) as entries:  # streams; `iterdir` would load all names of a large directory at once
            yield from map(Path, entries)
    except FileNotFoundError:
        return


def _parse_id(name: str) -> UUID | None:
    """Return the id in a name, None unless this driver would give that name: it uses one spelling of an id."""
    with suppress(ValueError):
        if str(parsed := UUID(name)) == name:
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
