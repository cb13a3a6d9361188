"""What lanes do with volumes: the part of a bulk job that is not the same for each kind.

`Chunks` has the lanes' steps, their locks and their transactions; an operation is what happens inside of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.states import ItemCode, ItemStatus
from domain.storage.context import Grant
from domain.volumes.repository import LockedVolume
from domain.volumes.states import BUSY, VolumeState


class ItemWork(NamedTuple):
    """One volume in the lane's hands, and what was written down about it.

    ``version`` is that of what is published. ``begun`` if an earlier attempt may have done it already, so that it
    must be brought to an end.
    """

    entry: ItemUpdate
    backend: str
    version: int
    resumed: bool

    @property
    def volume_id(self) -> UUID:
        """Name the volume."""
        return self.entry.volume_id

    def ended(self, status: ItemStatus, code: str, detail: str | None = None) -> ItemUpdate:
        """Make the entry that ends it."""
        volume_id, _, _, _, from_size, to_size, used, snapshot_id = self.entry
        return ItemUpdate(volume_id, status, code, detail, from_size, to_size, used, snapshot_id)


class Result(NamedTuple):
    """What became of one volume: the ledger's entry, and the size in bytes of what was made; None: as before."""

    entry: ItemUpdate
    size: int | None = None


class BulkOperation(Protocol):
    """What one kind of bulk job does with each of its volumes."""

    @property
    def state(self) -> VolumeState:
        """The state of a volume meanwhile."""

    @property
    def success_code(self) -> ItemCode:
        """The code of an item with which it went well."""

    def lane_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Say what lanes must know of the params of the whole."""

    def measures(self, params: Mapping[str, Any]) -> bool:
        """Tell whether lanes with these params decide by what is in use, and so must `measure` it."""

    async def measure(self, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Measure what `decide` wants to know, in bytes; what cannot be measured is left out."""

    async def decide(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, LockedVolume]],
        used: Mapping[UUID, int],
    ) -> list[ItemUpdate]:
        """Decide about volumes that are available, and locked: CLAIMED, or why not."""

    async def begin(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemUpdate, LockedVolume]],
        newly_taken: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Write down what is to be done with the lane's volumes; ``fresh``: versions of those that are new to it."""

    async def perform(self, task: ItemWork, grant: Grant) -> int | None:
        """Do the storage work; returns the size in bytes of what was made."""

    async def seal(self, task: ItemWork, entry: ItemUpdate, grant: Grant) -> Result:
        """Shut earlier attempts out of a task that ends as ``entry``, and tell what they have left."""

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]
    ) -> None:
        """Let go of what belongs to finished items, with the sizes in bytes that were reported for their volumes."""

    async def raise_fences(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Raise versions: the fences of a new lane must be above those that dead ones have left on the disk."""

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Let go of what belongs to items that no lane could bring to an end."""


def decide_by_state(item: ItemRef, volume: LockedVolume | None, lane: Lane) -> ItemUpdate | None:
    """Tell what follows from the state of a volume, whose row is locked; None if it is available.

    CLAIMED means that it is in the lane's hands already, PENDING that it is busy.
    """
    if volume is None:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_GONE)
    if volume.job_id == lane.job_id:  # an earlier attempt of this lane took it; its word stands
        return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, to_size=item.to_size, snapshot_id=item.snapshot_id)
    if volume.state in BUSY:
        return ItemUpdate(item.volume_id, ItemStatus.PENDING)
    if volume.state is VolumeState.ERROR:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_UNUSABLE, from_size=volume.size)
    return None
