"""Makes and grows the file system in a volume's file, with the file system's own tools."""

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Final
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.errors import FilesystemFailed
from domain.storage.file.disk import sync
from domain.storage.file.growth_mark import marked, repair_option

#: How to make each file system, followed by the option for its UUID. A new file holds no data: there is nothing to
#: discard. Without -T, mkfs.ext4 would choose blocks for a volume of today's size, and volumes grow. In a new file its
#: inode tables and its journal are zeros already, and are not written (``discard`` lets it know that).
_MKFS: Final[Mapping[str, Sequence[str]]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m0", "-b4096", "-Tdefault", "-Ediscard,lazy_itable_init=1,lazy_journal_init=1"),
    "xfs": ("mkfs.xfs", "-q", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-K"),
}
#: The packages with these tools, as Debian calls them.
PACKAGES: Final[Mapping[str, str]] = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
#: Administrators' tools are not on the PATH of every user.
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_MAX_OUTPUT: Final = 400
#: e2fsck: no errors, and errors that were corrected.
_CHECKED: Final = frozenset({0, 1})


def installed() -> tuple[str, ...]:
    """Return the file systems whose tools are on this host."""
    return tuple(name for name, command in _MKFS.items() if _program(command[0]) is not None)


def make(handle: int, filesystem: str, volume_id: UUID, grant: Grant) -> None:
    """Make a file system in an empty file; its UUID is the volume's id.

    Raises:
        FilesystemFailed: a tool is missing or fails.
    """
    uuid = ("-m", f"uuid={volume_id}") if filesystem == "xfs" else ("-U", str(volume_id))
    _run((*_MKFS[filesystem], *uuid), filesystem, handle, grant)


def grow_ext4(handle: int, lock: int, grant: Grant) -> None:
    """Check an ext4 file system that is not mounted, and grow it to the size of its file; may be repeated if killed.

    ``lock``: a descriptor whose lock keeps all others from the file. The tools inherit it: one that outlives this
    process goes on undisturbed, and the next attempt waits for it.

    Raises:
        FilesystemFailed: a tool is missing, or finds what a person must decide.
    """
    _run(("e2fsck", "-f", repair_option(handle)), "ext4", handle, grant, lock, accepted=_CHECKED)
    sync(handle, grant)
    with marked(handle):
        _run(("resize2fs",), "ext4", handle, grant, lock)
        sync(handle, grant)


def _program(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _run(
    command: Sequence[str],
    filesystem: str,
    handle: int,
    grant: Grant,
    *inherited: int,
    accepted: Collection[int] = frozenset({0}),
) -> None:
    """Run a tool on an open file, in a process that no signal to this one's group reaches: it must not end halfway."""
    tool = command[0]
    program = _program(tool)
    if program is None:
        raise FilesystemFailed(
            f"{tool} is not installed on the worker's host (Debian: apt-get install {PACKAGES[filesystem]})."
        )
    # To a file: a tool that outlives this process must not be ended by a broken pipe.
    with TemporaryFile() as output, grant.blocking_call(tool.partition(".")[0]):
        code = subprocess.run(  # noqa: S603 (a tool found by its name, and no user's input)
            [program, *command[1:], f"/proc/self/fd/{handle}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(handle, *inherited),
            start_new_session=True,
            env={"PATH": _SBIN, "LC_ALL": "C"},
            check=False,
        ).returncode
        output.seek(0)
        said = " ".join(output.read(64 * 1024).decode(errors="replace").split())[:_MAX_OUTPUT]
    if code not in accepted:
        raise FilesystemFailed(f"{tool} ended with {code}: {said or 'it said nothing'}")
