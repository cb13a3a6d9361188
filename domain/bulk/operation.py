"""What lanes do with volumes: the part of a bulk job that is not the same for each kind.

`Chunks` has the lanes' steps, their locks and their transactions; an operation is what happens inside of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import Entry, Lane, Line
from domain.bulk.states import Code, ItemStatus
from domain.storage.driver import Grant
from domain.volumes.repository import Held
from domain.volumes.states import BUSY, VolumeState


class Task(NamedTuple):
    """One volume in the lane's hands, and what was written down about it.

    ``version`` is that of what is published. ``begun`` if an earlier attempt may have done it already, so that it
    must be brought to an end.
    """

    entry: Entry
    backend: str
    version: int
    begun: bool

    @property
    def volume_id(self) -> UUID:
        """Name the volume."""
        return self.entry.volume_id

    def ends(self, status: ItemStatus, code: str, detail: str | None = None) -> Entry:
        """Make the entry that ends it."""
        volume_id, _, _, _, from_size, to_size, used, snapshot_id = self.entry
        return Entry(volume_id, status, code, detail, from_size, to_size, used, snapshot_id)


class Result(NamedTuple):
    """What became of one volume: the ledger's entry, and the size in bytes of what was made; None: as before."""

    entry: Entry
    size: int | None = None


class Operation(Protocol):
    """What one kind of bulk job does with each of its volumes."""

    @property
    def state(self) -> VolumeState:
        """The state of a volume meanwhile."""

    @property
    def done(self) -> Code:
        """The code of an item with which it went well."""

    def terms(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Say what lanes must know of the params of the whole."""

    def measures(self, params: Mapping[str, Any]) -> bool:
        """Tell whether lanes with these params decide by what is in use, and so must `measure` it."""

    async def measure(self, items: Sequence[Line]) -> dict[UUID, int]:
        """Measure what `decide` wants to know, in bytes; what cannot be measured is left out."""

    async def decide(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[Line, Held]], used: Mapping[UUID, int]
    ) -> list[Entry]:
        """Decide about volumes that are available, and locked: CLAIMED, or why not."""

    async def begin(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[Entry, Held]], fresh: Mapping[UUID, int]
    ) -> list[Task]:
        """Write down what is to be done with the lane's volumes; ``fresh``: versions of those that are new to it."""

    async def do(self, task: Task, grant: Grant) -> int | None:
        """Do the storage work; returns the size in bytes of what was made."""

    async def seal(self, task: Task, entry: Entry, grant: Grant) -> Result:
        """Shut earlier attempts out of a task that ends as ``entry``, and tell what they have left."""

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[Entry], sizes: Mapping[UUID, int | None]
    ) -> None:
        """Let go of what belongs to finished items, with the sizes in bytes that were reported for their volumes."""

    async def renew(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """Raise versions: the fences of a new lane must be above those that dead ones have left on the disk."""

    async def forsake(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """Let go of what belongs to items that no lane could bring to an end."""


def standing(item: Line, volume: Held | None, lane: Lane) -> Entry | None:
    """Tell what follows from the state of a volume, whose row is locked; None if it is available.

    CLAIMED means that it is in the lane's hands already, PENDING that it is busy.
    """
    if volume is None:
        return Entry(item.volume_id, ItemStatus.SKIPPED, Code.VOLUME_GONE)
    if volume.job_id == lane.job_id:  # an earlier attempt of this lane took it; its word stands
        return Entry(item.volume_id, ItemStatus.CLAIMED, to_size=item.to_size, snapshot_id=item.snapshot_id)
    if volume.state in BUSY:
        return Entry(item.volume_id, ItemStatus.PENDING)
    if volume.state is VolumeState.ERROR:
        return Entry(item.volume_id, ItemStatus.SKIPPED, Code.VOLUME_UNUSABLE, from_size=volume.size)
    return None
