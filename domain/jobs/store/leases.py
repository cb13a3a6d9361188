"""Claims, leases and settlements: what workers write to the job table, in batches.

Never commits; a claim is a single statement and may run in autocommit mode. All times are PostgreSQL's, so that the
workers' clocks do not matter.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Interval,
    Text,
    TextualSelect,
    Uuid,
    bindparam,
    case,
    column,
    delete,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.db.sql import as_arrays, as_json, from_now, json_rows, unnested
from domain.jobs.claimed import CLAIMED_COLUMNS, ClaimedJob
from domain.jobs.model import Job, JobMessage, Worker
from domain.jobs.outcomes import Payload
from domain.jobs.states import JobStatus

#: Number of heartbeats per lease; two may be missed before the lease expires.
BEATS_PER_LEASE: Final = 3
#: Default minimum of `heartbeat_timeout`, in seconds.
MIN_HEARTBEAT_TIMEOUT: Final = 2.0


class Progress(NamedTuple):
    """The number of bytes that an attempt has copied, and the number it must copy."""

    done: int
    total: int


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


# Claims and settlements, which every job needs, are literal SQL: SQLAlchemy takes longer to build such a statement than
# PostgreSQL takes to execute it.
#
# 1. Both lock the rows in the order of their ids before the UPDATE. An UPDATE locks rows in the order in which it finds
#    them, so two that find them in different orders would deadlock.
# 2. Both must find the rows by the primary key. If PostgreSQL estimates that few jobs are queued or running, it prefers
#    the partial index of those, which is full of dead entries under load. It uses a partial index only if the WHERE
#    clause implies the condition of the index, and it cannot prove that for IS NOT DISTINCT FROM and num_nulls().

#: FROM item that sets the lock timeout of this statement and of the rest of its transaction. It runs before any row is
#: locked: the sort is a barrier.
_WITH_LOCK_TIMEOUT: Final = "set_config('lock_timeout', :lock_timeout, true)"


def _claim_statement(*, extra_from: str, locking: str) -> TextualSelect:
    """Return the SQL of claims. Columns are listed by name, because a newer version may have added some."""
    dispatched = unnested("dispatched", job_id="uuid", epoch="bigint")
    return (
        text(f"""
            WITH claimable AS MATERIALIZED (
                SELECT jobs.id
                FROM {extra_from} jobs JOIN {dispatched}
                    ON jobs.id = dispatched.job_id AND jobs.epoch = dispatched.epoch
                WHERE status IS NOT DISTINCT FROM 'queued' AND kind = ANY(CAST(:kinds AS text[]))
                ORDER BY jobs.id FOR NO KEY UPDATE OF jobs {locking}
            )
            UPDATE jobs
            SET status = 'running',
                version = version + 1,
                attempt = attempt + 1,
                worker_id = :worker_id,
                lease_expires_at = now() + :lease,
                started_at = coalesce(started_at, now())
            FROM claimable WHERE jobs.id = claimable.id
            RETURNING {", ".join(f"jobs.{name}" for name in CLAIMED_COLUMNS)},
                CAST(greatest(1000 * date_part('epoch', now() - run_at), 0) AS bigint) AS queue_ms
        """)  # noqa: S608 (only constants)
        .bindparams(bindparam("worker_id", type_=Uuid()), bindparam("lease", type_=Interval()))
        .columns(*(getattr(Job, name) for name in CLAIMED_COLUMNS), column("queue_ms", BigInteger()))
    )


_CLAIM_SKIPPING_LOCKED: Final = _claim_statement(extra_from="", locking="SKIP LOCKED")
_CLAIM_WAITING: Final = _claim_statement(extra_from=f"{_WITH_LOCK_TIMEOUT},", locking="").bindparams(
    bindparam("lock_timeout", type_=Text())
)

#: The fields of `Settlement`, as array parameters.
_SETTLEMENTS: Final = unnested(
    "ends",
    job_id="uuid",
    epoch="bigint",
    status="text",
    result="text",
    error="text",
    delay="float",
    give_back="bigint",
    copied="bigint",
)
#: 1. A job that is to be cancelled skips its retry delay, except if the attempt is given back: a free retry (storage
#:    busy) could otherwise loop without a pause.
#: 2. The counters of a copying job are bytes, and none of them can fail or be skipped. A successful job has copied all
#:    of its bytes, even if it was an earlier attempt that copied them.
_SETTLE: Final = (
    text(f"""
        WITH ends AS MATERIALIZED (
            SELECT ends.*
            FROM {_WITH_LOCK_TIMEOUT},
                jobs JOIN {_SETTLEMENTS} ON jobs.id = ends.job_id AND jobs.epoch = ends.epoch
            WHERE worker_id = :worker_id
                AND jobs.status IS NOT DISTINCT FROM 'running' AND num_nulls(lease_expires_at) = 0
            ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
        )
        UPDATE jobs
        SET status = ends.status,
            version = version + 1,
            result = CAST(ends.result AS jsonb),
            error = CAST(ends.error AS jsonb),
            attempt = attempt - ends.give_back,
            epoch = jobs.epoch + CASE WHEN ends.status = 'queued' THEN 1 ELSE 0 END,
            run_at = now() + interval '1 s' *
                CASE WHEN cancel_requested_at IS NULL OR ends.give_back > 0 THEN ends.delay ELSE 0 END,
            dispatched_at = CASE WHEN ends.status <> 'queued' THEN dispatched_at END,
            lease_expires_at = NULL,
            finished_at = CASE WHEN ends.status NOT IN ('queued', 'running') THEN now() END,
            total = coalesce(ends.copied, total),
            succeeded = CASE WHEN ends.status = 'succeeded' THEN coalesce(ends.copied, total, succeeded)
                             ELSE succeeded END,
            failed = coalesce(failed, CASE WHEN coalesce(ends.copied, total) IS NOT NULL THEN 0 END),
            skipped = coalesce(skipped, CASE WHEN coalesce(ends.copied, total) IS NOT NULL THEN 0 END)
        FROM ends WHERE jobs.id = ends.job_id
        RETURNING jobs.id
    """)  # noqa: S608 (only constants)
    .bindparams(bindparam("worker_id", type_=Uuid()), bindparam("lock_timeout", type_=Text()))
    .columns(id=Uuid())
)


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
        lease: float,
        lock_timeout: float | None = None,
    ) -> Sequence[ClaimedJob]:
        """Claim the queued jobs whose epoch is that of their message, for ``lease`` seconds.

        Jobs of other kinds than ``kinds`` are left to workers of a newer version. Locked rows are skipped, or waited
        for if there is a ``lock_timeout`` (seconds).
        """
        params = {
            **as_arrays(messages),
            "kinds": list(kinds),
            "worker_id": worker_id,
            "lease": timedelta(seconds=lease),
        }
        if lock_timeout is None:
            rows = await self._session.execute(_CLAIM_SKIPPING_LOCKED, params)
        else:
            rows = await self._session.execute(_CLAIM_WAITING, {**params, "lock_timeout": _milliseconds(lock_timeout)})
        return [ClaimedJob(*row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement], *, worker_id: UUID, lock_timeout: float) -> set[UUID]:
        """Settle the attempts that ``worker_id`` still holds. Returns the ids of their jobs.

        ``lock_timeout`` (seconds) applies to this statement and to the rest of the transaction. A settlement that is
        repeated, because the reply to its COMMIT was lost, finds nothing the second time.
        """
        params: dict[str, Any] = as_arrays(settlements)
        for name in ("result", "error"):
            params[name] = [None if payload is None else as_json(payload) for payload in params[name]]
        params |= {"worker_id": worker_id, "lock_timeout": _milliseconds(lock_timeout)}
        return set((await self._session.scalars(_SETTLE, params)).all())

    async def renew(
        self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress], *, worker_id: UUID, lease: float
    ) -> Sequence[Renewal]:
        """Extend the leases of the jobs that ``worker_id`` still holds to ``lease`` seconds from now.

        The same statement stores their progress; it raises the version, the ETag, only if the progress has changed.
        Locked rows are skipped: waiting for one must not cost the other jobs their leases.
        """
        rows = ({"id": job_id} | (progress[job_id]._asdict() if job_id in progress else {}) for job_id in job_ids)
        new = json_rows(rows, id=Uuid(), done=Job.total.type, total=Job.total.type)
        done, total = func.coalesce(new.c.done, Job.succeeded), func.coalesce(new.c.total, Job.total)
        progressed = Job.succeeded.is_distinct_from(done) | Job.total.is_distinct_from(total)
        unlocked = select(Job.id).where(Job.id.in_(job_ids)).with_for_update(skip_locked=True, key_share=True)
        query = (
            update(Job)
            .where(Job.id == new.c.id, Job.id.in_(unlocked), *_leased_by(worker_id))
            .values(
                lease_expires_at=from_now(lease),
                version=Job.version + case((progressed, 1), else_=0),
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
        row = {"id": worker.id, "host": worker.host, "pid": worker.pid}
        row["max_renewal_delay"] = max_renewal_delay(lease, min_timeout)
        interrupted = literal(gap) | ~Worker.heartbeat_at.between(from_now(-lease), from_now(lease))
        changes = {
            "heartbeat_at": func.now(),
            "uninterrupted_since": case((interrupted, func.now()), else_=Worker.uninterrupted_since),
            "max_renewal_delay": row["max_renewal_delay"],
        }
        upsert = insert(Worker).values(row).on_conflict_do_update(index_elements=["id"], set_=changes)
        await self._session.execute(upsert)

    async def count_workers(self, lease: float) -> int:
        """Count the workers with a heartbeat in the last ``lease`` seconds."""
        alive = select(func.count()).where(Worker.heartbeat_at > from_now(-lease))
        return (await self._session.scalars(alive)).one()

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
