"""What a lane does with a chunk of items: claim it, take its volumes, grow them, record it.

Each step but the growing is one short transaction that first makes sure, on the lane's own row, that this attempt
still has the lane. A step that comes too late changes nothing and raises `Stopped`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import Database
from domain.errors import CisternError
from domain.expansion.ledger import CLOSED_AT_ONCE, Entry, Lane, Ledger
from domain.expansion.model import Item
from domain.expansion.policy import GrowthPolicy
from domain.expansion.states import Code, ItemStatus
from domain.jobs.batches import BatchRepository
from domain.jobs.model import Job
from domain.jobs.queue import JobQueue
from domain.storage.backends import Backends
from domain.storage.driver import Fence, FenceRefused, Grant, Stopped, StopReason, StorageBusy, TransientStorageError
from domain.volumes.model import Volume
from domain.volumes.repository import Ending, VolumeRepository
from domain.volumes.states import BUSY, VolumeState

_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Task:
    """One volume in the lane's hands, and the size in bytes that was written down for it.

    ``begun`` if an earlier attempt may have grown it already, so that it must be brought to an end.
    """

    volume_id: UUID
    backend: str
    to_size: int
    version: int
    begun: bool


@dataclass(frozen=True)
class Result:
    """What became of one volume: the ledger's entry, and the size in bytes it now has; None: as before."""

    entry: Entry
    size: int | None = None


class LanesLost(CisternError):
    """Every lane that worked on this volume died or failed."""

    code = Code.LANES_LOST


class Chunks:
    """The steps of a lane."""

    def __init__(self, database: Database, queue: JobQueue, backends: Backends, *, patience: float) -> None:
        """``patience``: for how many seconds busy volumes are tried again."""
        self._database = database
        self._queue = queue
        self._backends = backends
        self._patience = patience

    # --- claim -------------------------------------------------------------------------------------------

    async def inherit(self, job: Job) -> Sequence[Item]:
        """Claim again what an earlier attempt of this lane has left behind."""
        async with self._held(job) as (session, lane):
            return await Ledger(session).inherit(lane)

    async def claim(self, job: Job, limit: int) -> Sequence[Item]:
        """Claim up to ``limit`` items that wait."""
        async with self._held(job) as (session, lane):
            return await Ledger(session).claim(lane, limit)

    async def next_due(self, job: Job) -> float | None:
        """In how many seconds there is something to claim again; None when nothing waits any more."""
        async with self._database.transaction() as session:
            return await Ledger(session).next_due(_lane(job).job_id)

    async def holds_any(self, job: Job) -> bool:
        """Tell whether the lane still has volumes in its hands."""
        async with self._database.transaction() as session:
            return await Ledger(session).holds(_lane(job))

    async def is_cancelled(self, job: Job) -> bool:
        """Tell whether the end of the whole job was asked for."""
        async with self._database.transaction() as session:
            return await BatchRepository(session).is_cancelled(_lane(job).job_id)

    # --- take --------------------------------------------------------------------------------------------

    async def measure(self, items: Sequence[Item]) -> dict[UUID, int]:
        """Measure how many bytes of each volume are allocated; what cannot be measured is left out."""
        async with self._database.transaction() as session:
            places = await VolumeRepository(session).places([item.volume_id for item in items])
        usages = await asyncio.gather(*(self._used(backend, volume_id) for volume_id, backend in places.items()))
        return {volume_id: used for volume_id, used in zip(places, usages, strict=True) if used is not None}

    async def take(self, job: Job, items: Sequence[Item], used: dict[UUID, int]) -> list[Task]:
        """Take the volumes that shall grow, and write down to which size, under their locks."""
        policy = GrowthPolicy(**job.params["policy"])
        async with self._held(job) as (session, lane):
            volumes = VolumeRepository(session)
            locked = {volume.id: volume for volume in await volumes.lock_many([item.volume_id for item in items])}
            await volumes.note_usage({volume_id: number for volume_id, number in used.items() if volume_id in locked})
            decided = [
                _decide(item, locked.get(item.volume_id), lane, policy, used.get(item.volume_id)) for item in items
            ]
            busy = [entry.volume_id for entry in decided if entry.status is ItemStatus.PENDING]
            entries = [entry for entry in decided if entry.status is not ItemStatus.PENDING]
            growing = [entry for entry in entries if entry.status is ItemStatus.CLAIMED]
            fresh = [entry.volume_id for entry in growing if locked[entry.volume_id].job_id != lane.job_id]
            versions = await volumes.take_many(fresh, VolumeState.EXPANDING, lane.job_id)
            ledger = Ledger(session)
            await ledger.write(lane, entries)
            tired = await ledger.postpone(lane, busy, patience=self._patience)
            ended = await self._tally(session, lane, entries, tired)
        await self._announce(lane, ended=ended)
        return [_task(entry, locked[entry.volume_id], versions) for entry in growing]

    # --- grow --------------------------------------------------------------------------------------------

    async def grow(self, task: Task, grant: Grant) -> Result | None:
        """Grow one volume; whatever goes wrong is a value, so that it stops no other.

        None: it is left as it is, in the lane's hands, because the attempt is to end, or because somebody holds the
        volume's lock and may still publish. The lane's next slice tries again.
        """
        part = grant.part(Fence(task.version, grant.fence.rings))
        try:
            size = await self._expand(task, part)
        except (Stopped, StorageBusy):
            return None
        except FenceRefused as error:  # we have the lane, or nothing of this is recorded: so the disk is ahead of us
            return Result(_entry(task, ItemStatus.FAILED, error.code, error.message))
        except CisternError as error:
            return await self._fail(task, part, error)
        except Exception:
            log.exception("volume.crashed", volume_id=str(task.volume_id))
            return await self._fail(task, part, CisternError())
        log.debug("volume.expanded", volume_id=str(task.volume_id), size=size)
        return Result(_entry(task, ItemStatus.SUCCEEDED, Code.EXPANDED), size)

    async def give_up(self, task: Task, grant: Grant) -> Result | None:
        """Find out what other lanes have left of a volume, without trying again."""
        return await self._fail(task, grant.part(Fence(task.version, grant.fence.rings)), LanesLost())

    def leave(self, task: Task) -> Result:
        """Let a volume be that nobody has begun to grow, because the job was cancelled."""
        return Result(_entry(task, ItemStatus.SKIPPED, Code.CANCELLED))

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, job: Job, results: Sequence[Result]) -> None:
        """Record what became of a chunk: volumes, items and counters, at once, as far as the lane still has them."""
        sizes = {result.entry.volume_id: result.size for result in results}
        async with self._held(job) as (session, lane):
            written = await Ledger(session).write(lane, [result.entry for result in results])
            endings = [Ending(item.volume_id, lane.job_id, sizes[item.volume_id]) for item in written]
            await VolumeRepository(session).let_go(endings, VolumeState.AVAILABLE)
            ended = await self._tally(session, lane, written)
        await self._announce(lane, ended=ended)

    async def cancel_rest(self, job: Job) -> None:
        """Skip everything that still waits, since the job was cancelled."""
        await self._close_rest(job, ItemStatus.SKIPPED, Code.CANCELLED)

    async def fail_rest(self, job: Job) -> None:
        """Fail everything that still waits, since no lane has come through."""
        await self._close_rest(job, ItemStatus.FAILED, Code.LANES_LOST)

    async def _close_rest(self, job: Job, status: ItemStatus, code: Code) -> None:
        closed = CLOSED_AT_ONCE
        while closed == CLOSED_AT_ONCE:
            async with self._held(job) as (session, lane):
                items = await Ledger(session).close(lane.job_id, was=ItemStatus.PENDING, status=status, code=code)
                closed = len(items)
                ended = await self._tally(session, lane, items)
        await self._announce(lane, ended=ended)

    # --- what the steps share ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, job: Job) -> AsyncIterator[tuple[AsyncSession, Lane]]:
        async with self._database.transaction() as session:
            if not await BatchRepository(session).hold(job):
                raise Stopped(StopReason.LEASE_LOST)
            yield session, _lane(job)

    async def _tally(self, session: AsyncSession, lane: Lane, finished: Sequence[Entry | Item], tired: int = 0) -> bool:
        counts = {status: sum(item.status is status for item in finished) for status in ItemStatus}
        return await BatchRepository(session).tally(
            lane.job_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + tired,
        )

    async def _announce(self, lane: Lane, *, ended: bool) -> None:
        await self._queue.announce(lane.job_id)
        if ended:
            log.info("bulk.ended", job_id=str(lane.job_id))

    async def _used(self, backend: str, volume_id: UUID) -> int | None:
        try:
            usage = await self._backends.reach(backend).measure(volume_id)
        except CisternError:
            return None  # if it matters, growing the volume will say why
        return None if usage is None else usage.used

    async def _expand(self, task: Task, grant: Grant) -> int:
        """Grow a volume on its backend; a failure that may pass gets a second and a third chance on the spot."""
        for attempt in range(1, _TRIES):
            try:
                return await self._backends.reach(task.backend).expand(task.volume_id, task.to_size, grant)
            except StorageBusy:
                raise
            except TransientStorageError:
                await asyncio.sleep(_PAUSE_SECONDS * attempt)
        return await self._backends.reach(task.backend).expand(task.volume_id, task.to_size, grant)

    async def _fail(self, task: Task, grant: Grant, error: CisternError) -> Result | None:
        """Shut earlier attempts out, see what is on the storage, and let the volume go with that."""
        log.debug("volume.failed", volume_id=str(task.volume_id), code=error.code)
        entry = _entry(task, ItemStatus.FAILED, error.code, error.message)
        try:
            return Result(entry, await self._backends.reach(task.backend).seal(task.volume_id, grant))
        except StorageBusy:
            return None
        except CisternError as unknown:  # of the storage, or a backend that is configured no more
            log.warning("storage.unknown", volume_id=str(task.volume_id), error=unknown.message)
            return Result(entry)


def _lane(job: Job) -> Lane:
    if job.parent_id is None:
        raise RuntimeError(f"{job.kind} {job.id} is part of nothing")
    return Lane(job.parent_id, job.id, job.rings)


def _decide(item: Item, volume: Volume | None, lane: Lane, policy: GrowthPolicy, used: int | None) -> Entry:
    """Decide about one volume, whose row is locked. PENDING means that it is busy."""
    if volume is None:
        return Entry(item.volume_id, ItemStatus.SKIPPED, Code.VOLUME_GONE)
    if volume.job_id == lane.job_id:  # an earlier attempt of this lane took it; its word stands
        return Entry(item.volume_id, ItemStatus.CLAIMED, to_size=item.to_size)
    if volume.state in BUSY:
        return Entry(item.volume_id, ItemStatus.PENDING)
    if volume.state is VolumeState.ERROR:
        return Entry(item.volume_id, ItemStatus.SKIPPED, Code.VOLUME_UNUSABLE, from_size=volume.size)
    wanted = policy.decide(volume.size, used) if item.to_size is None else _binding(item.to_size, volume.size)
    if isinstance(wanted, Code):
        return Entry(item.volume_id, ItemStatus.SKIPPED, wanted, from_size=volume.size, used=used)
    return Entry(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=wanted, used=used)


def _binding(to_size: int, size: int) -> int | Code:
    """A size that was written down before, by a job of which this one is the retry."""
    return to_size if to_size > size else Code.ALREADY_THERE


def _task(entry: Entry, volume: Volume, versions: dict[UUID, int]) -> Task:
    if entry.to_size is None:
        raise RuntimeError(f"volume {volume.id} was taken without a size to grow to")
    version = versions.get(volume.id, volume.version)
    return Task(volume.id, volume.backend, entry.to_size, version, begun=volume.id not in versions)


def _entry(task: Task, status: ItemStatus, code: str, detail: str | None = None) -> Entry:
    return Entry(task.volume_id, status, code, detail, to_size=task.to_size)
