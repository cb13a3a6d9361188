"""What is really on the disk, whoever put it there: for those who compare it with what should be."""

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
    """Looks at the tree without any lock: what it tells was so at some moment."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree

    def page(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash, upwards by id."""
        return _lowest((one for one in self._ids() if after is None or one > after), limit)

    def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Report sizes, fences and leftovers."""
        folder = self._tree.folder(volume_id)
        kept = {*snapshot_ids, *filter(None, (_id(path.name) for path in _entries(folder / "snapshots")))}
        return StoredVolume(
            self._stored(volume_id, self._tree.data(volume_id)),
            {one: self._stored(one, self._tree.snapshot(volume_id, one)) for one in kept},
            [*self._drafts(volume_id), *self._trash(volume_id)],
        )

    def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove these, and directories that are empty then; others may be removing the same."""
        for leftover in leftovers:
            with suppress(FileNotFoundError):
                shutil.rmtree(leftover.path) if leftover.trash else Path(leftover.path).unlink()
        folder = self._tree.folder(volume_id)
        if not self._tree.data(volume_id).exists():
            for empty in (folder / "snapshots", folder):
                with suppress(OSError):
                    empty.rmdir()

    def _ids(self) -> Iterator[UUID]:
        for path in chain(_entries(self._tree.root), _entries(self._tree.trash)):
            if (found := _id(path.name.partition(".")[0])) is not None:
                yield found

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
            subject_id = volume_id if match and match[1] == "data" else _id(match[1]) if match else None
            if subject_id is not None:
                yield Leftover(subject_id, str(path), trash=False)

    def _trash(self, volume_id: UUID) -> Iterator[Leftover]:
        for path in self._tree.trash.glob(f"{self._tree.folder(volume_id).name}.*"):
            yield Leftover(volume_id, str(path), trash=True)


def _entries(folder: Path) -> Iterable[Path]:
    try:
        with os.scandir(folder) as found:  # as it reads, where `iterdir` would hold all names of a large directory
            yield from map(Path, found)
    except FileNotFoundError:
        return


def _id(name: str) -> UUID | None:
    """Read a name that this driver gave; other spellings of the same id are not its own."""
    with suppress(ValueError):
        if str(found := UUID(name)) == name:
            return found
    return None


def _lowest(ids: Iterable[UUID], limit: int) -> Sequence[UUID]:
    """Find the lowest ids, each once, without ever holding many more of them than asked for."""
    kept: set[UUID] = set()
    for one in ids:
        kept.add(one)
        if len(kept) > 2 * limit:
            kept = set(sorted(kept)[:limit])
    return sorted(kept)[:limit]
