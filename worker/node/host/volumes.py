"""What the operations of the host return about its volumes."""

from dataclasses import dataclass, field
from uuid import UUID


def always() -> None:
    """Let whatever is checked go on."""


@dataclass(frozen=True)
class Attached:
    """A volume on this node. ``mount_path`` is None if it has no file system.

    ``grown_to`` is the size of the volume in bytes up to which its file system has been grown, None if that failed for
    the reason ``growth_error``, or if there is no file system.
    """

    device: str
    mount_path: str | None
    grown_to: int | None = None
    growth_error: str | None = None


@dataclass(frozen=True)
class FoundVolume:
    """A volume that this host has, as the kernel shows it. ``targets`` are the bind mounts of holders."""

    volume_id: UUID
    device: str
    file: str | None
    filesystem: str | None
    mount_path: str | None
    targets: tuple[str, ...] = ()
    read_only_targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """What letting go of a volume has achieved.

    ``is_gone``: no process of this host has it any longer. Otherwise some still hold files open; if also not
    ``writes_stopped``, they may go on writing to the file that the volume had.
    """

    is_gone: bool
    writes_stopped: bool
    problems: tuple[str, ...] = field(default=())
