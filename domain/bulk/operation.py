"""What one kind of bulk job does with each of its volumes, inside the steps of a lane.

`domain.bulk.chunks` has these steps, with their locks and transactions, and is the same for every kind.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.model import ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.requests import BulkRequest
from domain.errors import CisternError
from domain.jobs.attempt import Payload
from domain.operations import VolumeState
from domain.storage.context import Fence, Grant, Stopped
from domain.storage.errors import BackendUnavailable, FenceRefused, StorageBusy, TransientStorageError
from domain.volumes.model import VolumeRow
from domain.volumes.repository import Release, VolumeRepository

_MAX_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


class LanesLost(CisternError):
    """Every lane that worked on this volume died or failed."""

    code = ItemCode.LANES_LOST


class ItemWork(NamedTuple):
    """The work on one volume that a lane has acquired.

    ``update`` is the item as written to the ledger; ``version`` that of the volume or snapshot to publish. ``resumed``
    is set if an earlier attempt may have done the work already, so that it must be completed even after cancellation.
    ``attached``: a node has the volume. ``allow_torn``: a snapshot of it may mix several moments.
    """

    update: ItemUpdate
    backend: str
    version: int
    resumed: bool
    #: The file system that is to be grown after the work.
    filesystem: str | None = None
    attached: bool = False
    allow_torn: bool = False

    @property
    def volume_id(self) -> UUID:
        """The volume's id."""
        return self.update.volume_id

    def ending(self, status: ItemStatus, code: str, detail: str | None = None) -> ItemUpdate:
        """Return the update that ends the item."""
        volume_id, _, _, _, from_size, to_size, used, snapshot_id = self.update
        return ItemUpdate(volume_id, status, code, detail, from_size, to_size, used, snapshot_id)


class Result(NamedTuple):
    """The outcome of the work on one item; ``size`` of its volume or snapshot in bytes, None if it is unchanged.

    ``stored`` is the fence on the backend if the item's was refused, and None otherwise. The item then stays claimed.
    ``consistency`` is what its snapshot is worth, if one was taken.
    """

    update: ItemUpdate
    size: int | None = None
    stored: Fence | None = None
    #: What was found out of the volume's file system, if it was to be grown.
    growth: Payload | None = None
    consistency: str | None = None


class BulkOperation(ABC):
    """One kind of bulk job."""

    request_type: ClassVar[type[BulkRequest]]
    #: The state of a volume while a lane works on it.
    state: ClassVar[VolumeState]
    #: The code of a succeeded item.
    success_code: ClassVar[ItemCode]
    #: The names of the parent's params that its lanes need.
    lane_params: ClassVar[tuple[str, ...]]

    # --- the work on one item: every failure is returned as a value, so that it cannot affect other items ------

    async def work_on(self, work: ItemWork, grant: Grant) -> Result | None:
        """Do the storage work and return its result.

        Return None if the item must stay claimed: the attempt is being stopped, another process holds the storage lock
        and may still publish, or the backend cannot be used now. The lane's next slice tries again.
        """
        item_grant = _grant_for(work, grant)
        try:
            return await self._with_retries(work, item_grant)
        except (Stopped, StorageBusy, BackendUnavailable):
            return None
        except FenceRefused as error:
            return _refused(work, error)
        except CisternError as error:
            return await self._failed(work, item_grant, error)
        except Exception:
            log.exception("volume.handler_error", volume_id=str(work.volume_id))
            return await self._failed(work, item_grant, CisternError())

    async def fail(self, work: ItemWork, grant: Grant) -> Result | None:
        """Fail the item: seal its volume and report what other lanes left, without doing the work."""
        return await self._failed(work, _grant_for(work, grant), LanesLost())

    def succeeded(
        self, work: ItemWork, size: int | None, *, consistency: str | None = None, growth: Payload | None = None
    ) -> Result:
        """Return the result of work that is done."""
        detail = None if growth is None else growth.get("filesystem_error")
        update = work.ending(ItemStatus.SUCCEEDED, self.success_code, detail)
        return Result(update, size, growth=growth, consistency=consistency)

    def skip(self, work: ItemWork) -> Result:
        """Skip the item of a cancelled job. No attempt has started on it, so there is nothing to seal."""
        return Result(work.ending(ItemStatus.SKIPPED, ItemCode.CANCELLED)._replace(snapshot_id=None))

    async def _with_retries(self, work: ItemWork, grant: Grant) -> Result:
        """Do the storage work, with up to three tries if the errors are transient."""
        for try_number in range(1, _MAX_TRIES):
            try:
                return await self.perform(work, grant)
            except (StorageBusy, BackendUnavailable):
                raise
            except TransientStorageError:
                await asyncio.sleep(_PAUSE_SECONDS * try_number)
        return await self.perform(work, grant)

    async def _failed(self, work: ItemWork, grant: Grant, error: CisternError) -> Result | None:
        """Bar earlier attempts from publishing, and end the item with what is then found on the backend.

        Return None if another process holds the storage lock: the volume cannot be sealed yet and stays with the lane.
        """
        log.debug("volume.failed", volume_id=str(work.volume_id), code=error.code)
        update = work.ending(ItemStatus.FAILED, error.code, error.message)
        try:
            return await self.seal(work, update, grant)
        except (StorageBusy, BackendUnavailable):
            return None
        except FenceRefused as refused:
            return _refused(work, refused)
        except CisternError as seal_error:  # a permanent one of the backend
            log.warning("storage.state_unknown", volume_id=str(work.volume_id), error=seal_error.message)
            return Result(update)

    # --- what each kind does ----------------------------------------------------------------------------------

    def measures(self, params: Mapping[str, Any]) -> bool:  # noqa: ARG002 (for others)
        """Return whether `decide_available` depends on the usage of volumes, so that `measure` must be called."""
        return False

    async def measure(
        self,
        items: Sequence[ItemRef],  # noqa: ARG002 (for others)
        project_id: UUID,  # noqa: ARG002 (for others)
    ) -> dict[UUID, int | None]:
        """Return the bytes in use of volumes of a project by id, None if the backend cannot tell.

        Volumes that cannot be measured are left out.
        """
        return {}

    @abstractmethod
    def needed(self, update: ItemUpdate) -> dict[str, int]:
        """Return what a volume to be worked on adds to its project, in the words of `Room.take`."""

    @abstractmethod
    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, VolumeRow]],
        used: Mapping[UUID, int | None],
    ) -> list[ItemUpdate]:
        """Decide about items whose volumes are available and locked: CLAIMED to work on them, else why not."""

    @abstractmethod
    async def prepare(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemUpdate, VolumeRow]],
        newly_acquired: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Write down what the work needs and return the work.

        ``newly_acquired`` has the new versions of the volumes acquired in this transaction; the lane's job already held
        the others.
        """

    @abstractmethod
    async def perform(self, work: ItemWork, grant: Grant) -> Result:
        """Do the storage work; return its result, which has the size in bytes of what was made."""

    @abstractmethod
    async def seal(self, work: ItemWork, update: ItemUpdate, grant: Grant) -> Result:
        """Bar earlier attempts from publishing; return ``update`` corrected by what they left on the backend."""

    @abstractmethod
    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], results: Mapping[UUID, Result]
    ) -> None:
        """Release the volumes and snapshots of finished items, with what the ``results`` say, by volume id."""

    @abstractmethod
    async def raise_fences(
        self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef | ItemUpdate], *, above: int = 0
    ) -> None:
        """Increment versions, so that new fences are above those that dead lanes left on the backend.

        The versions are then higher than ``above``, too.
        """

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Release the volumes, with their sizes unchanged, and snapshots of items that no lane could finish."""
        await release_volumes(session, job_id, items, {})


async def release_volumes(
    session: AsyncSession, job_id: UUID, items: Sequence[ItemUpdate | ItemRef], results: Mapping[UUID, Result]
) -> None:
    """Release the volumes of items with the sizes of their results; a volume without one keeps its size."""
    sizes = {volume_id: result.size for volume_id, result in results.items()}
    releases = [Release(item.volume_id, job_id, sizes.get(item.volume_id)) for item in items]
    await VolumeRepository(session).release(releases, VolumeState.AVAILABLE)


def _refused(work: ItemWork, error: FenceRefused) -> Result:
    """Return the result of an item whose fence was refused.

    Either this attempt has lost the lane, and `LaneSteps.record` will drop this result; or it holds the lane, and the
    database has lost what it knew of a later attempt.
    """
    update = work.ending(ItemStatus.FAILED, error.code, error.message)
    return Result(update, stored=None if error.stored is None else Fence(*error.stored))


def _grant_for(work: ItemWork, grant: Grant) -> Grant:
    return grant.for_item(Fence(work.version, grant.fence.epoch))
