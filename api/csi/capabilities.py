"""What a volume of Cistern can do, compared with what an orchestrator wants to do with it."""

from collections.abc import Iterable
from typing import Final

from api.csi import csi_pb2 as csi
from api.csi.errors import invalid
from domain.storage.filesystems import FILESYSTEMS

DEFAULT_FILESYSTEM: Final = "ext4"

_Mode = csi.VolumeCapability.AccessMode
READ_ONLY: Final = _Mode.SINGLE_NODE_READER_ONLY
SINGLE_WRITER: Final = _Mode.SINGLE_NODE_SINGLE_WRITER
_MODES: Final = (_Mode.SINGLE_NODE_WRITER, READ_ONLY, SINGLE_WRITER, _Mode.SINGLE_NODE_MULTI_WRITER)


def missing(capability: csi.VolumeCapability) -> str | None:
    """Say what a capability lacks to be one; None if it is complete."""
    if capability.WhichOneof("access_type") is None:
        return "a volume capability has neither `mount` nor `block`"
    if capability.access_mode.mode == _Mode.UNKNOWN:
        return "a volume capability has no access mode"
    return None


def unsupported(capability: csi.VolumeCapability) -> str | None:
    """Say why no volume can have a capability; None if a volume can."""
    if capability.WhichOneof("access_type") == "block":
        return "raw block volumes are not supported: mount a file system"
    if capability.access_mode.mode not in _MODES:
        return "a volume can be used on one node at a time"
    if capability.mount.fs_type not in ("", *FILESYSTEMS):
        return f"file system {capability.mount.fs_type!r} is not one of {', '.join(FILESYSTEMS)}"
    if capability.mount.mount_flags or capability.mount.volume_mount_group:
        return "mount options and mount groups are not supported"
    return None


def mismatch(capability: csi.VolumeCapability, filesystem: str | None) -> str | None:
    """Say why a volume with a file system, or without one for None, does not have a capability; None if it has."""
    if reason := unsupported(capability):
        return reason
    if filesystem is None:
        return "the volume has no file system"
    if capability.mount.fs_type not in ("", filesystem):
        return f"the volume has the file system {filesystem}"
    return None


def require_complete(capabilities: Iterable[csi.VolumeCapability]) -> None:
    """Refuse a request without capabilities, or with incomplete ones.

    Raises:
        CallRejected: it is so.
    """
    given = list(capabilities)
    if not given:
        raise invalid("volume capabilities are missing")
    for capability in given:
        if reason := missing(capability):
            raise invalid(reason)


def wanted_filesystem(capabilities: Iterable[csi.VolumeCapability], parameter: str | None) -> str | None:
    """Return the file system that a new volume shall have; None if it is left to Cistern.

    Raises:
        CallRejected: a volume cannot have these capabilities, or not all of them.
    """
    names = {parameter} - {None}
    for capability in capabilities:
        if reason := unsupported(capability):
            raise invalid(reason)
        names |= {capability.mount.fs_type} - {""}
    if len(names) > 1:
        raise invalid(f"a volume has one file system: {', '.join(sorted(map(str, names)))} were given")
    return next(iter(names), None)
