"""Claims, leases and settlements: what workers write to the job table, in batches.

Never commits; a claim is a single statement and may run in autocommit mode. All times are PostgreSQL's, so that the
workers' clocks do not matter.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Float,
    TableValuedAlias,
    Text,
    Uuid,
    case,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.db.sql import array_rows, as_array, as_records, from_now
from domain.jobs.attempt import ClaimedJob, Payload
from domain.jobs.model import Job, JobMessage, Worker
from domain.jobs.states import JobStatus
from domain.jobs.store import statements

#: Number of heartbeats per lease; two may be missed before the lease expires.
BEATS_PER_LEASE: Final = 3
#: Default minimum of `heartbeat_timeout`, in seconds.
MIN_HEARTBEAT_TIMEOUT: Final = 2.0


class SlowCall(NamedTuple):
    """A blocking call that an attempt waits for: its name, its duration so far and its limit, both in seconds."""

    call: str
    seconds: float
    limit_seconds: float


class Progress(NamedTuple):
    """The number of bytes that an attempt has copied and must copy (None: unknown), and the slow call it waits for."""

    done: int | None
    total: int | None
    slow_call: SlowCall | None = None


class Renewal(NamedTuple):
    """An extended lease, and whether the user has cancelled the job."""

    job_id: UUID
    cancel_requested: bool


class Settlement(NamedTuple):
    """What one attempt writes to its row.

    ``delay`` (seconds) applies to a job that returns to the queue; ``give_back`` is the number of attempts given back;
    ``copied`` is the number of bytes copied, None for work that copies nothing.
    """

    job_id: UUID
    epoch: int
    status: JobStatus
    result: Payload | None = None
    error: Payload | None = None
    delay: float = 0.0
    give_back: int = 0
    copied: int | None = None


class LeaseRepository:
    """Claims, leases, settlements and heartbeats, within one transaction."""

    def __init__(self, session: AsyncSession | AsyncConnection) -> None:
        self._session = session

    async def claim(
        self,
        messages: Sequence[JobMessage],
        *,
        worker_id: UUID,
        kinds: Collection[str],
        backends: Collection[str],
        lease: float,
        lock_timeout: float | None = None,
    ) -> Sequence[ClaimedJob]:
        """Claim the queued jobs whose epoch is that of their message, for ``lease`` seconds.

        Jobs of other kinds than ``kinds`` are left to workers of a newer version, and jobs on other backends than
        ``backends`` to workers that serve those. Locked rows are skipped, or waited
        for if there is a ``lock_timeout`` (seconds).
        """
        params = {
            "job_id": as_array([message.job_id for message in messages]),
            "epoch": as_array([message.epoch for message in messages]),
            "kinds": list(kinds),
            "backends": list(backends),
            "worker_id": worker_id,
            "lease": timedelta(seconds=lease),
        }
        if lock_timeout is None:
            rows = await self._session.execute(statements.CLAIM, params)
        else:
            rows = await self._session.execute(
                statements.CLAIM_WAITING, {**params, "lock_timeout": _milliseconds(lock_timeout)}
            )
        return [ClaimedJob(*row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement], *, worker_id: UUID, lock_timeout: float) -> set[UUID]:
        """Settle the attempts that ``worker_id`` still holds. Returns the ids of their jobs.

        ``lock_timeout`` (seconds) applies to this statement and to the rest of the transaction. A settlement that is
        repeated, because the reply to its COMMIT was lost, finds nothing the second time.
        """
        params = {
            "rows": as_records(settlements),
            "ids": as_array([settlement.job_id for settlement in settlements]),
            "worker_id": worker_id,
            "lock_timeout": _milliseconds(lock_timeout),
        }
        return set((await self._session.scalars(statements.SETTLE, params)).all())

    async def renew(
        self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress], *, worker_id: UUID, lease: float
    ) -> Sequence[Renewal]:
        """Extend the leases of the jobs that ``worker_id`` still holds to ``lease`` seconds from now.

        The same statement stores their progress; it raises the version, the ETag, only if the progress has changed.
        Locked rows are skipped: waiting for one must not cost the other jobs their leases.
        """
        new = _renewed_rows(job_ids, progress)
        done, total = func.coalesce(new.c.done, Job.succeeded), func.coalesce(new.c.total, Job.total)
        same_call = Job.waiting_for["call"].astext.is_not_distinct_from(new.c.call)
        progressed = Job.succeeded.is_distinct_from(done) | Job.total.is_distinct_from(total) | ~same_call
        unlocked = select(Job.id).where(Job.id.in_(job_ids)).with_for_update(skip_locked=True, key_share=True)
        query = (
            update(Job)
            .where(Job.id == new.c.id, Job.id.in_(unlocked), *_leased_by(worker_id))
            .values(
                lease_expires_at=from_now(lease),
                version=Job.version + case((progressed, 1), else_=0),
                waiting_for=case((same_call, Job.waiting_for), (new.c.call.is_not(None), _waiting_for(new))),
                **_progress(done, total),
            )
            .returning(Job.id, Job.cancel_requested_at.is_not(None))
            .execution_options(synchronize_session=False)
        )
        return [Renewal(*row) for row in await self._session.execute(query)]

    async def held_by(self, job_ids: Collection[UUID], *, worker_id: UUID) -> set[UUID]:
        """Return the jobs among these that ``worker_id`` holds, locked or not."""
        query = select(Job.id).where(Job.id.in_(job_ids), *_leased_by(worker_id))
        return set((await self._session.scalars(query)).all())

    async def record_heartbeat(
        self, worker: Worker, *, lease: float, gap: bool, min_timeout: float = MIN_HEARTBEAT_TIMEOUT
    ) -> None:
        """Record a heartbeat of this worker; after a gap, a new series of uninterrupted heartbeats begins.

        There is a gap if (1) the caller passes ``gap``: the worker has just started, or noticed an outage that left no
        trace in PostgreSQL; (2) the last heartbeat is older than a lease (seconds); or (3) it is in the future by more
        than a lease: PostgreSQL's clock has stepped back.
        """
        row = {"id": worker.id, "host": worker.host, "pid": worker.pid, "slots": worker.slots, "node": worker.node}
        row["max_renewal_delay"] = max_renewal_delay(lease, min_timeout)
        interrupted = literal(gap) | ~Worker.heartbeat_at.between(from_now(-lease), from_now(lease))
        changes = {
            "heartbeat_at": func.now(),
            "uninterrupted_since": case((interrupted, func.now()), else_=Worker.uninterrupted_since),
            "max_renewal_delay": row["max_renewal_delay"],
        }
        upsert = insert(Worker).values(row).on_conflict_do_update(index_elements=["id"], set_=changes)
        await self._session.execute(upsert)

    async def delete_worker(self, worker_id: UUID) -> None:
        """Remove a worker that is shutting down from the list of workers."""
        await self._session.execute(delete(Worker).where(Worker.id == worker_id))


def heartbeat_timeout(lease: float, minimum: float = MIN_HEARTBEAT_TIMEOUT) -> float:
    """Return the number of seconds after which an unanswered heartbeat is retried on another connection."""
    return max(min(lease / 3, 5.0), minimum)


def max_renewal_delay(lease: float, minimum: float = MIN_HEARTBEAT_TIMEOUT) -> float:
    """Return the maximum number of seconds from the end of an outage until a worker has renewed its leases.

    1. The worker has noticed the outage: one heartbeat times out and, after a pause, the next one succeeds.
    2. It has not, as after a step of PostgreSQL's clock: one heartbeat interval passes, then one heartbeat succeeds.

    ``minimum`` is that of `heartbeat_timeout`.
    """
    timeout = heartbeat_timeout(lease, minimum)
    return timeout + max(timeout, lease / BEATS_PER_LEASE)


def _leased_by(worker_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of a lease held by this worker. A job delegated to lanes is running, but has no lease."""
    return Job.worker_id == worker_id, Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_not(None)


def _renewed_rows(job_ids: Collection[UUID], progress: Mapping[UUID, Progress]) -> TableValuedAlias:
    """Return a row per job: its id, and what is known of its progress."""
    nothing = Progress(None, None)
    rows = []
    for job_id in job_ids:
        done, total, slow_call = progress.get(job_id, nothing)
        rows.append({"id": job_id, "done": done, "total": total} | (slow_call._asdict() if slow_call else {}))
    size, number = Job.total.type, Float()
    return array_rows(rows, id=Uuid(), done=size, total=size, call=Text(), seconds=number, limit_seconds=number)


def _waiting_for(new: TableValuedAlias) -> ColumnElement[Any]:
    """Return what is shown of a slow call. Its start is kept from the first heartbeat that reports it."""
    since = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, new.c.seconds)
    limit = new.c.limit_seconds
    return func.jsonb_build_object("call", new.c.call, "since", since, "limit_seconds", limit)


def _progress(done: ColumnElement[Any], total: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """Return the new counters of a job, in bytes; none can fail or be skipped. A null leaves a counter unchanged."""
    return {
        "total": func.coalesce(total, Job.total),
        "succeeded": func.coalesce(done, Job.succeeded),
        "failed": func.coalesce(Job.failed, case((total.is_not(None), 0))),
        "skipped": func.coalesce(Job.skipped, case((total.is_not(None), 0))),
    }


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
