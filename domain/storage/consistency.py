"""What the bytes of a snapshot are worth, and how one is taken that is worth what was asked for."""

import enum
from typing import NamedTuple
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.storage.errors import SnapshotTorn


class Consistency(enum.StrEnum):
    """How the bytes of a snapshot belong together."""

    #: Nothing was being written: no process had the volume open for writing, or its file system was frozen.
    APPLICATION = "application"
    #: Of one moment while the volume was in use, as after a power cut.
    CRASH = "crash"
    #: Copied one after the other while the volume was in use: they may be of several moments.
    COPIED = "copied"


class TakenSnapshot(NamedTuple):
    """A snapshot that was taken: its size in bytes, None if the backend stores no sizes, and what it is worth."""

    size: int | None
    consistency: Consistency


def consistency_of(*, shared: bool, was_open: bool | None, frozen: bool) -> Consistency:
    """Return what a snapshot is worth; ``was_open`` is None if that is unknown, which counts as open."""
    if frozen or was_open is False:
        return Consistency.APPLICATION
    return Consistency.CRASH if shared else Consistency.COPIED


async def take_snapshot(
    driver: StorageDriver, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool, attached: bool
) -> TakenSnapshot:
    """Take a snapshot; ``attached``: a node has the volume, which a driver on another host cannot know.

    A copy that turns out to be torn is deleted again, unless ``allow_torn``.

    Raises:
        SnapshotTorn: ``allow_torn`` is false, the bytes of one moment cannot be kept, and the volume is in use.
        StorageError: as the driver.
    """
    taken = await driver.take_snapshot(volume_id, snapshot_id, grant, allow_torn=allow_torn)
    was_open = True if attached else taken.was_open
    consistency = consistency_of(shared=taken.shared, was_open=was_open, frozen=taken.was_frozen)
    if attached and consistency is Consistency.COPIED and not allow_torn:
        await driver.delete_snapshot(volume_id, snapshot_id, grant)
        raise SnapshotTorn(
            "The volume is attached and its backend cannot share blocks, so that the snapshot would mix several"
            " moments. Detach the volume, keep it where blocks can be shared, or say `allow_torn`."
        )
    return TakenSnapshot(taken.size, consistency)
