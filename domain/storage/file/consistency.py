"""What the copy of a file that may be written to is worth: whether its blocks were shared, and who had the file open.

It is kept in an extended attribute of the snapshot, where the file system has such attributes: an attempt that finds
the snapshot published, by an earlier one that has died since, reports what that one has found.
"""

import os
import re
from contextlib import suppress
from typing import Final, NamedTuple

from domain.storage.context import Grant
from domain.storage.errors import SnapshotTorn
from domain.storage.file import disk
from domain.storage.file.leases import is_open_for_writing

_ATTRIBUTE: Final = "user.cistern.taken"
_WRITERS: Final = {True: "open", False: "closed", None: "unknown"}
_TEXT: Final = re.compile(r"(shared|copied) (open|closed|unknown)")


class CopyConditions(NamedTuple):
    """Whether the blocks are shared, and whether any process had the file open for writing; None if that is unknown."""

    shared: bool
    was_open: bool | None


class _Watched:
    """A file that is copied, and whether it is written to meanwhile."""

    def __init__(self, handle: int, *, allow_torn: bool) -> None:
        self._handle = handle
        self._allow_torn = allow_torn
        self._modified = os.fstat(handle).st_mtime_ns
        self._was_open = is_open_for_writing(handle)
        self._shared = True

    def before_copying(self) -> None:
        """Note that blocks cannot be shared."""
        self._shared = False
        self._refuse_if_torn()

    def ended(self) -> CopyConditions:
        """Check once more: the file may have been opened, or even closed again, during the copy."""
        open_now = is_open_for_writing(self._handle)
        if open_now or os.fstat(self._handle).st_mtime_ns != self._modified:
            self._was_open = True
        elif not self._was_open:
            self._was_open = open_now
        self._refuse_if_torn()
        return CopyConditions(self._shared, self._was_open)

    def _refuse_if_torn(self) -> None:
        if not (self._allow_torn or self._shared) and self._was_open:
            raise SnapshotTorn(
                "The volume is open for writing and its file system cannot share blocks, so that the snapshot would mix"
                " several moments. Close or freeze the volume, keep it on XFS or Btrfs, or say `allow_torn`."
            )


def copy_watched(source: int, draft: int, grant: Grant, *, allow_torn: bool) -> CopyConditions:
    """Copy a file into a new one and sync it; return what the copy is worth.

    Raises:
        SnapshotTorn: blocks cannot be shared, the file is open for writing, and the copy may not be torn.
    """
    watched = _Watched(source, allow_torn=allow_torn)
    disk.copy(source, draft, grant, watched.before_copying)
    found = watched.ended()
    text = f"{'shared' if found.shared else 'copied'} {_WRITERS[found.was_open]}"
    with suppress(OSError):  # the file system has no attributes
        os.setxattr(draft, _ATTRIBUTE, text.encode())
    disk.sync(draft, grant)
    return found


def recorded(handle: int) -> CopyConditions | None:
    """Read what is recorded with a snapshot, None if nothing is."""
    try:
        text = os.getxattr(handle, _ATTRIBUTE).decode(errors="replace")
    except OSError:
        return None
    found = _TEXT.fullmatch(text)
    if not found:
        return None
    return CopyConditions(found[1] == "shared", {"open": True, "closed": False}.get(found[2]))
