"""What is mounted where, as /proc/self/mountinfo tells (proc(5)). Reads one file, changes nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_SEPARATOR: Final = b"-"
_FIXED_FIELDS: Final = 6


@dataclass(frozen=True)
class Mount:
    """One line: ``root`` of the file system ``device`` is seen at ``mount_point``."""

    id: int
    parent_id: int
    device: str  # "major:minor"; of btrfs it is not that of the block device
    root: str
    mount_point: str
    options: tuple[str, ...]
    peer_group: int | None
    filesystem: str
    source: str

    @property
    def is_read_only(self) -> bool:
        """Whether this mount, not the whole file system, is read-only."""
        return "ro" in self.options


@dataclass(frozen=True)
class MountTable:
    """All mounts of this process's mount namespace."""

    mounts: Sequence[Mount]

    def at(self, directory: str) -> Mount | None:
        """Return what is seen at the directory: the mount that no other one at the same place covers."""
        here = [mount for mount in self.mounts if mount.mount_point == directory]
        covered = {mount.parent_id for mount in here}
        return next((mount for mount in reversed(here) if mount.id not in covered), None)

    def of_device(self, device: str) -> list[Mount]:
        """Return all mounts of the file system on a block device such as "/dev/loop0", also bind mounts."""
        numbers = {mount.device for mount in self.mounts if mount.source == device}
        return [mount for mount in self.mounts if mount.device in numbers]

    def parent(self, mount: Mount) -> Mount | None:
        """Return the mount that a mount is on."""
        return next((other for other in self.mounts if other.id == mount.parent_id and other is not mount), None)


def parse(text: bytes) -> MountTable:
    """Parse the content of a mountinfo file; lines of an unknown form are left out."""
    found = (_parse_line(line) for line in text.splitlines())
    return MountTable([mount for mount in found if mount])


def read() -> MountTable:
    """Read the mounts of this process."""
    return parse(MOUNTINFO.read_bytes())


def _parse_line(line: bytes) -> Mount | None:
    fields = line.split(b" ")
    if _SEPARATOR not in fields[_FIXED_FIELDS:]:
        return None
    separator = fields.index(_SEPARATOR, _FIXED_FIELDS)
    if len(fields) < separator + 3:
        return None
    tags = dict(field.partition(b":")[::2] for field in fields[_FIXED_FIELDS:separator])
    return Mount(
        id=int(fields[0]),
        parent_id=int(fields[1]),
        device=fields[2].decode(),
        root=_unescape(fields[3]),
        mount_point=_unescape(fields[4]),
        options=tuple(fields[5].decode().split(",")),
        peer_group=int(tags[b"shared"]) if b"shared" in tags else None,
        filesystem=_unescape(fields[separator + 1]),
        source=_unescape(fields[separator + 2]),
    )


def _unescape(field: bytes) -> str:
    r"""Space, tab, newline and backslash are written as \040, \011, \012 and \134."""
    text = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return text.decode(errors="surrogateescape")
