"""The directory layout of the file driver: the names of files, drafts and trash in it, and what is found there.

``<volume>/data``, ``<volume>/snapshots/<snapshot>``, ``.fences/<volume or snapshot>``, ``.trash``, and the file
``.cistern``, which says what the root belongs to. It is read without locks: a result was true at some moment and may be
out of date.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import PurePosixPath
from typing import Final
from uuid import UUID

from domain.storage.context import Fence, Grant
from domain.storage.driver import Leftover
from domain.storage.errors import AccessDenied
from domain.storage.file.folder import Folder
from domain.storage.file.leases import held_exclusively

FENCES: Final = ".fences"
TRASH: Final = ".trash"
IDENTITY: Final = ".cistern"
_DATA: Final = "data"
_SNAPSHOTS: Final = "snapshots"
_DRAFT = re.compile(r"(?P<target>.+)\.(?P<version>\d+)-(?P<epoch>\d+)\.tmp")


def name(subject_id: UUID) -> str:
    """Return the file name for an id. It is built from the number, so that a str passed by mistake cannot be a path."""
    return str(UUID(int=subject_id.int))


def data_of(volume_id: UUID) -> PurePosixPath:
    """Return where a volume's bytes are below the root."""
    return PurePosixPath(name(volume_id), _DATA)


def snapshot_of(volume_id: UUID, snapshot_id: UUID) -> PurePosixPath:
    """Return where a snapshot's bytes are below the root."""
    return PurePosixPath(name(volume_id), _SNAPSHOTS, name(snapshot_id))


class Draft:
    """A file of one attempt beside its target, whose name it gets when it is published; it does not exist at first.

    It stays open from its creation to its end: whoever may write to the directory could put another file in its place.
    """

    def __init__(self, parent: Folder, folder: Folder, target: str, grant: Grant) -> None:
        self._parent, self._folder, self._target, self._grant = parent, folder, target, grant
        self._name = f"{target}.{grant.fence.version}-{grant.fence.epoch}.tmp"
        self._opened = ExitStack()
        self._handle: int | None = None

    def create(self) -> int:
        """Create the file and return its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._handle = self._opened.enter_context(self._folder.opened(self._name, flags))
        return self._handle

    def remove(self) -> None:
        """Close and remove the file, if there is one. Once it is published, that is one of two names."""
        self._opened.close()
        self._folder.unlink(self._name, self._grant)

    def publish(self) -> int:
        """Link the draft to the target's name, unless the target exists; return the target's size in bytes."""
        if self._folder.size(self._target) is None:
            self._require_own()
            self._folder.link(self._name, self._target)
        size = self._folder.size(self._target)
        if size is None:
            raise FileNotFoundError(self._target)
        _sweep(self._folder, self._target, self._grant)
        self._folder.sync(self._grant)
        self._parent.sync(self._grant)  # the folder itself may be new
        return size

    @contextmanager
    def replacing(self, *, in_use: bool = False) -> Iterator[int]:
        """Open the target for the block, then put the draft in its place.

        ``in_use``: do so even if another process has the target open, which keeps the old file without a name.

        Raises:
            FileNotFoundError: there is no target.
            VolumeInUse: another process has it open.
        """
        with ExitStack() as opened:
            replaced = opened.enter_context(self._folder.opened(self._target, os.O_RDONLY))
            lease = nullcontext() if in_use else self._lease(replaced)
            with lease:
                yield replaced
                self._require_own()
                self._folder.replace(self._name, self._target, self._grant)
            with self._grant.blocking_call("remove"):
                opened.close()  # which frees the blocks of a large file
        _sweep(self._folder, self._target, self._grant)
        self._folder.sync(self._grant)

    def _lease(self, replaced: int) -> AbstractContextManager[None]:
        return held_exclusively(replaced, self._folder.path / self._target, self._grant)

    def _require_own(self) -> None:
        """Refuse to publish what somebody else has put in the draft's place."""
        status, own = self._folder.status(self._name), self._handle is not None and os.fstat(self._handle)
        if status and own and (status.st_dev, status.st_ino) != (own.st_dev, own.st_ino):
            raise AccessDenied(f"{self._folder.path / self._name} was replaced while it was written.")


class FileTree:
    """What is below a root that is open."""

    def __init__(self, root: Folder) -> None:
        self.root = root

    @contextmanager
    def opened(self, place: PurePosixPath, flags: int) -> Iterator[int]:
        """Open the file at a place.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.root.within(place) as folder, folder.opened(place.name, flags) as handle:
            yield handle

    @contextmanager
    def unused(self, place: PurePosixPath, grant: Grant) -> Iterator[None]:
        """Require that no process has the file at a place open, and let none open it; a missing file is not open.

        Raises:
            VolumeInUse: another process has it open.
        """
        with ExitStack() as opened:
            with suppress(OSError, AccessDenied):  # none, a link in its place, or one that may not be read
                handle = opened.enter_context(self.opened(place, os.O_RDONLY))
                opened.enter_context(held_exclusively(handle, self.root.path / place, grant))
            yield

    def size(self, place: PurePosixPath) -> int | None:
        """Return the length in bytes of the file at a place, None if there is none."""
        with suppress(FileNotFoundError), self.root.within(place) as folder:
            return folder.size(place.name)
        return None

    def volume_ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes that have a directory or trash, whatever created them, in ascending order of id."""
        with self.root.folder(TRASH) as trash:
            names = (entry.name for folder in (self.root, trash) for entry in folder.entries())
            ids = filter(None, (parse_id(found.partition(".")[0]) for found in names))
            return _lowest((id_ for id_ in ids if after is None or id_ > after), limit)

    def snapshot_ids(self, volume_id: UUID) -> Sequence[UUID]:
        """List the snapshots of a volume."""
        return list(filter(None, map(parse_id, self._names(snapshot_of(volume_id, volume_id)))))

    def leftovers(self, volume_id: UUID) -> Iterator[Leftover]:
        """Yield the drafts of a volume and its snapshots, then its trash."""
        for place in (data_of(volume_id), snapshot_of(volume_id, volume_id)):
            for found in self._names(place):
                if match := _DRAFT.fullmatch(found):
                    subject_id = volume_id if match["target"] == _DATA else parse_id(match["target"])
                    if subject_id is not None:
                        yield Leftover(subject_id, str(self.root.path / place.with_name(found)), trash=False)
        with self.root.folder(TRASH) as trash:
            for found in _trash_of(trash, volume_id):
                yield Leftover(volume_id, str(trash.path / found), trash=True)

    def _names(self, place: PurePosixPath) -> Sequence[str]:
        """List the names beside a place; none if there is no directory."""
        with suppress(FileNotFoundError), self.root.within(place) as folder:
            return [entry.name for entry in folder.entries()]
        return ()

    def remove(self, volume_id: UUID, leftovers: Collection[Leftover], grant: Grant) -> None:
        """Remove leftovers, and directories that are empty afterwards; other processes may remove the same ones."""
        for leftover in leftovers:
            place = PurePosixPath(leftover.path).relative_to(self.root.path)
            with suppress(FileNotFoundError), self.root.within(place) as folder:
                folder.remove(place.name, grant)
        with suppress(AccessDenied):  # a link has the place of the volume's directory or file
            if self.size(data_of(volume_id)) is None:
                for place in (snapshot_of(volume_id, volume_id).parent, data_of(volume_id).parent):
                    with suppress(OSError), self.root.within(place) as folder:  # not empty, or already removed
                        folder.remove_empty(place.name)

    @contextmanager
    def draft(self, target: PurePosixPath, grant: Grant) -> Iterator[Draft]:
        """Yield the draft of this attempt; in the end remove it, and its directory if that is empty."""
        with self.root.within(target.parent) as parent:
            parent.make(target.parent.name)
            with parent.folder(target.parent.name) as folder:
                draft = Draft(parent, folder, target.name, grant)
                # Not truncated: after a crash right after publishing, the draft is a second name of the target.
                draft.remove()
                try:
                    yield draft
                finally:
                    draft.remove()
                    with suppress(OSError):  # usually not empty: it contains the target
                        parent.remove_empty(target.parent.name)

    def unlink(self, target: PurePosixPath, grant: Grant) -> None:
        """Remove a file and its drafts, if it and its directory exist."""
        with suppress(FileNotFoundError), self.root.within(target) as folder:
            folder.unlink(target.name, grant)
            _sweep(folder, target.name, grant)
            folder.sync(grant)

    def sweep_drafts(self, target: PurePosixPath, grant: Grant) -> None:
        """Remove the drafts that can no longer be published: those of this attempt and of earlier ones."""
        with suppress(FileNotFoundError), self.root.within(target) as folder:
            _sweep(folder, target.name, grant)

    def move_to_trash(self, volume_id: UUID, grant: Grant) -> None:
        """Move the volume's directory, if there is one, to the trash in one step; a link in its place likewise."""
        volume = name(volume_id)
        with self.root.folder(TRASH) as trash:
            with suppress(FileNotFoundError):
                self.root.move(volume, trash, f"{volume}.{grant.fence.version}-{grant.fence.epoch}")
            trash.sync(grant)
        self.root.sync(grant)

    def empty_trash(self, volume_id: UUID, grant: Grant) -> None:
        """Remove the volume's trash. The delete is published before that, so the grant is no longer checked."""
        with self.root.folder(TRASH) as trash:
            for found in _trash_of(trash, volume_id):
                trash.remove(found, grant)


def _sweep(folder: Folder, target: str, grant: Grant) -> None:
    for found in [entry.name for entry in folder.entries()]:
        match = _DRAFT.fullmatch(found)
        if not match or match["target"] != target:
            continue
        if Fence(int(match["version"]), int(match["epoch"])) <= grant.fence:
            folder.unlink(found, grant)


def _trash_of(trash: Folder, volume_id: UUID) -> Sequence[str]:
    prefix = f"{name(volume_id)}."
    return [entry.name for entry in trash.entries() if entry.name.startswith(prefix)]


def parse_id(text: str) -> UUID | None:
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
