"""The interface between lanes and the kinds of bulk jobs.

`Chunks` has the steps of a lane, with its locks and transactions, and is the same for every kind. A `BulkOperation` is
what one kind of bulk job does inside those steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.requests import BulkRequest
from domain.bulk.states import ItemCode, ItemStatus
from domain.operations import BUSY, VolumeState
from domain.storage.context import Grant
from domain.volumes.model import LockedVolume


class ItemWork(NamedTuple):
    """The work on one volume that a lane has acquired.

    ``update`` is the item as written to the ledger; ``version`` that of the volume or snapshot to publish. ``resumed``
    is set if an earlier attempt may have done the work already, so that it must be completed even after cancellation.
    """

    update: ItemUpdate
    backend: str
    version: int
    resumed: bool

    @property
    def volume_id(self) -> UUID:
        """The volume's id."""
        return self.update.volume_id

    def ended(self, status: ItemStatus, code: str, detail: str | None = None) -> ItemUpdate:
        """Return the update that ends the item."""
        volume_id, _, _, _, from_size, to_size, used, snapshot_id = self.update
        return ItemUpdate(volume_id, status, code, detail, from_size, to_size, used, snapshot_id)


class Result(NamedTuple):
    """The outcome of the work on one item; ``size`` of its volume or snapshot in bytes, None if it is unchanged."""

    update: ItemUpdate
    size: int | None = None


class BulkOperation(Protocol):
    """What one kind of bulk job does with each of its volumes."""

    @property
    def request_type(self) -> type[BulkRequest]:
        """The requests for this kind of bulk job."""

    @property
    def state(self) -> VolumeState:
        """The state of a volume while a lane works on it."""

    @property
    def success_code(self) -> ItemCode:
        """The code of a succeeded item."""

    def lane_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of the parent's params that its lanes need."""

    def measures(self, params: Mapping[str, Any]) -> bool:
        """Return whether `decide_available` depends on the usage of volumes, so that `measure` must be called."""

    async def measure(self, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Return the allocated bytes of volumes by id; volumes that cannot be measured are left out."""

    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, LockedVolume]],
        used: Mapping[UUID, int],
    ) -> list[ItemUpdate]:
        """Decide about items whose volumes are available and locked: CLAIMED to work on them, else why not."""

    async def prepare(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemUpdate, LockedVolume]],
        newly_acquired: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Write down what the work needs and return the work.

        ``newly_acquired`` has the new versions of the volumes acquired in this transaction; the lane's job already held
        the others.
        """

    async def perform(self, work: ItemWork, grant: Grant) -> int | None:
        """Do the storage work; return the size in bytes of what was made."""

    async def seal(self, work: ItemWork, update: ItemUpdate, grant: Grant) -> Result:
        """Bar earlier attempts from publishing; return ``update`` corrected by what they left on the backend."""

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]
    ) -> None:
        """Release the volumes and snapshots of finished items; ``sizes`` in bytes as reported, by volume id."""

    async def raise_fences(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Increment versions, so that the fences of a new lane are above those that dead lanes left on the backend."""

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Release the volumes and snapshots of items that no lane could finish."""


def decide_by_state(item: ItemRef, volume: LockedVolume | None, lane: Lane) -> ItemUpdate | None:
    """Decide about an item by the state of its volume, whose row is locked; None if the volume is available.

    CLAIMED: the parent job holds the volume already. PENDING: the volume is busy with another job.
    """
    if volume is None:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_GONE)
    if volume.job_id == lane.parent_id:  # acquired by an earlier attempt, whose decision in the ledger is binding
        return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, to_size=item.to_size, snapshot_id=item.snapshot_id)
    if volume.state in BUSY:
        return ItemUpdate(item.volume_id, ItemStatus.PENDING)
    if volume.state is VolumeState.ERROR:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_UNUSABLE, from_size=volume.size)
    return None
