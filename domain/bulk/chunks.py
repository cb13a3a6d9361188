"""What a lane does with a chunk of items: claim it, take its volumes, do the work, record it.

Each step but the work is one short transaction that first makes sure, on the lane's own row, that this attempt
still has the lane. A step that comes too late changes nothing and raises `Stopped`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import EXPAND
from domain.bulk.ledger import CLOSED_AT_ONCE, Entry, Lane, Ledger, Line
from domain.bulk.operation import Operation, Result, Task, standing
from domain.bulk.states import FINISHED, Code, ItemStatus
from domain.database import Database
from domain.errors import CisternError
from domain.jobs.batches import BatchRepository
from domain.jobs.model import Job
from domain.jobs.queue import JobQueue
from domain.storage.driver import Fence, FenceRefused, Grant, Stopped, StopReason, StorageBusy, TransientStorageError
from domain.volumes.repository import Held, VolumeRepository

_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


class LanesLost(CisternError):
    """Every lane that worked on this volume died or failed."""

    code = Code.LANES_LOST


class Chunks:
    """The steps of a lane."""

    def __init__(
        self, database: Database, queue: JobQueue, operations: Mapping[str, Operation], *, patience: float
    ) -> None:
        """``operations`` by the kind of the whole; ``patience``: for how many seconds busy volumes are tried again."""
        self._database = database
        self._queue = queue
        self._operations = operations
        self._patience = patience

    # --- claim -------------------------------------------------------------------------------------------

    async def inherit(self, job: Job) -> Sequence[Line]:
        """Claim again what an earlier attempt of this lane has left behind."""
        async with self._held(job) as (session, lane):
            return await Ledger(session).inherit(lane)

    async def claim(self, job: Job, limit: int) -> Sequence[Line]:
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

    async def measure(self, job: Job, items: Sequence[Line]) -> dict[UUID, int]:
        """Measure what is to be known about these volumes; what cannot be measured is left out."""
        return await self._operation(job).measure(items)

    async def take(self, job: Job, items: Sequence[Line], used: Mapping[UUID, int]) -> list[Task]:
        """Take the volumes that are to be worked on, and write down what is to be done, under their locks."""
        operation = self._operation(job)
        async with self._held(job) as (session, lane):
            volumes = VolumeRepository(session)
            locked = {volume.id: volume for volume in await volumes.lock_many([item.volume_id for item in items])}
            found = [(item, locked.get(item.volume_id)) for item in items]
            entries = await _decide(session, operation, lane, found, used)
            taken = [(entry, locked[entry.volume_id]) for entry in _those(entries, ItemStatus.CLAIMED)]
            fresh = [volume.id for _, volume in taken if volume.job_id != lane.job_id]
            versions = await volumes.take_many(fresh, operation.state, lane.job_id)
            tasks = await operation.begin(session, lane, taken, versions)
            finished = [entry for entry in entries if entry.status in FINISHED]
            ledger = Ledger(session)
            await ledger.write(lane, [*finished, *(task.entry for task in tasks)])
            busy = [entry.volume_id for entry in _those(entries, ItemStatus.PENDING)]
            tired = await ledger.postpone(lane, busy, patience=self._patience)
            ended = await self._tally(session, lane, finished, tired)
        await self._announce(lane, ended=ended)
        return tasks

    # --- work --------------------------------------------------------------------------------------------

    async def do(self, job: Job, task: Task, grant: Grant) -> Result | None:
        """Do the work on one volume; whatever goes wrong is a value, so that it stops no other.

        None: it is left as it is, in the lane's hands, because the attempt is to end, or because somebody holds the
        lock and may still publish. The lane's next slice tries again.
        """
        operation, part = self._operation(job), grant.part(Fence(task.version, grant.fence.rings))
        try:
            size = await _patiently(operation, task, part)
        except (Stopped, StorageBusy):
            return None
        except FenceRefused as error:  # we have the lane, or nothing of this is recorded: so the disk is ahead of us
            return Result(task.ends(ItemStatus.FAILED, error.code, error.message))
        except CisternError as error:
            return await _fail(operation, task, part, error)
        except Exception:
            log.exception("volume.crashed", volume_id=str(task.volume_id))
            return await _fail(operation, task, part, CisternError())
        event = f"volume.{operation.done}"
        log.debug(event, volume_id=str(task.volume_id), size=size)
        return Result(task.ends(ItemStatus.SUCCEEDED, operation.done), size)

    async def give_up(self, job: Job, task: Task, grant: Grant) -> Result | None:
        """Find out what other lanes have left of a volume, without trying again."""
        part = grant.part(Fence(task.version, grant.fence.rings))
        return await _fail(self._operation(job), task, part, LanesLost())

    def leave(self, task: Task) -> Result:
        """Let a volume be on which nobody has begun to work, because the job was cancelled."""
        return Result(task.ends(ItemStatus.SKIPPED, Code.CANCELLED)._replace(snapshot_id=None))

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, job: Job, results: Sequence[Result]) -> None:
        """Record what became of a chunk: volumes, items and counters, at once, as far as the lane still has them."""
        sizes = {result.entry.volume_id: result.size for result in results}
        async with self._held(job) as (session, lane):
            written = await Ledger(session).write(lane, [result.entry for result in results])
            await self._operation(job).record(session, lane, written, sizes)
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

    async def _tally(self, session: AsyncSession, lane: Lane, finished: Sequence[Entry | Line], tired: int = 0) -> bool:
        if not finished and not tired:
            return False  # the row of the whole is everybody's: nobody touches it for nothing
        counts = Counter(item.status for item in finished)
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

    def _operation(self, job: Job) -> Operation:
        """What this lane's job is for; one from before there were others does not say so."""
        return self._operations[job.params.get("of", EXPAND)]


async def _decide(
    session: AsyncSession,
    operation: Operation,
    lane: Lane,
    found: Sequence[tuple[Line, Held | None]],
    used: Mapping[UUID, int],
) -> list[Entry]:
    """Decide about each volume: by its state, or else as the operation does."""
    by_state = [entry for item, volume in found if (entry := standing(item, volume, lane)) is not None]
    decided = {entry.volume_id for entry in by_state}
    available = [(item, volume) for item, volume in found if volume is not None and volume.id not in decided]
    return by_state + await operation.decide(session, lane, available, used)


async def _patiently(operation: Operation, task: Task, grant: Grant) -> int | None:
    """Do the storage work; a failure that may pass gets a second and a third chance on the spot."""
    for attempt in range(1, _TRIES):
        try:
            return await operation.do(task, grant)
        except StorageBusy:
            raise
        except TransientStorageError:
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
    return await operation.do(task, grant)


async def _fail(operation: Operation, task: Task, grant: Grant, error: CisternError) -> Result | None:
    """Shut earlier attempts out, see what is on the storage, and let the volume go with that."""
    log.debug("volume.failed", volume_id=str(task.volume_id), code=error.code)
    entry = task.ends(ItemStatus.FAILED, error.code, error.message)
    try:
        return await operation.seal(task, entry, grant)
    except StorageBusy:
        return None
    except CisternError as unknown:  # of the storage, or a backend that is configured no more
        log.warning("storage.unknown", volume_id=str(task.volume_id), error=unknown.message)
        return Result(entry)


def _those(entries: Sequence[Entry], status: ItemStatus) -> list[Entry]:
    return [entry for entry in entries if entry.status is status]


def _lane(job: Job) -> Lane:
    if job.parent_id is None:
        raise RuntimeError(f"{job.kind} {job.id} is part of nothing")
    return Lane(job.parent_id, job.id, job.rings, job.params, job.created_by)
