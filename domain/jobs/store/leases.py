"""What workers ask of the job table: claims, leases, settlements. Each takes many rows at once.

Never commits; a claim is one statement, and may be a transaction by itself. All times are PostgreSQL's, so that the
clocks of the workers do not matter.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Interval,
    Text,
    TextualSelect,
    Uuid,
    bindparam,
    case,
    delete,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.db.sql import as_arrays, as_json, from_now, given_rows, unnested
from domain.jobs.claimed import ClaimedJob
from domain.jobs.model import Dispatch, Job, Worker
from domain.jobs.outcomes import Payload
from domain.jobs.states import JobStatus

#: Beats in one lease: two may be missed.
BEATS_PER_LEASE: Final = 3
#: Default minimum of `heartbeat_timeout`, in seconds.
MIN_HEARTBEAT_TIMEOUT: Final = 2.0


class Progress(NamedTuple):
    """How far an attempt is with what it copies, in bytes."""

    done: int
    total: int


class Renewal(NamedTuple):
    """A lease that was extended, and whether the user has asked for an end meanwhile."""

    job_id: UUID
    cancel_requested: bool


class Settlement(NamedTuple):
    """What one attempt writes into its row.

    ``delay`` in seconds, for a job that goes back to the queue; ``give_back`` so many of its attempts. ``copied`` in
    bytes, for work that copies something.
    """

    job_id: UUID
    epoch: int
    status: JobStatus
    result: Payload | None = None
    error: Payload | None = None
    delay: float = 0.0
    give_back: int = 0
    copied: int | None = None


# The two statements that every job needs are SQL, once and for all: SQLAlchemy takes longer to put one together than
# PostgreSQL takes to carry it out.

# Both lock by id first: an UPDATE locks rows as it finds them, and two that find them differently wait for each other.
# Both shall find rows by their ids. If PostgreSQL believes that few are queued or running it prefers the partial index
# of those, which is full of dead entries in a busy house. It takes one only where a condition implies that of the
# index, and it cannot tell that IS NOT DISTINCT FROM and num_nulls() do.

#: Sets for how long this statement and the rest of its transaction wait for a row that somebody has locked. It comes in
#: time, for rows are locked only when all of them have been found and sorted.
_WITH_LOCK_TIMEOUT: Final = "set_config('lock_timeout', :lock_timeout, true)"


def _claiming(*, around: str, locked: str) -> TextualSelect:
    """SQL for claims. Columns are named, for a newer version may have added some."""
    dispatched = unnested("dispatched", job_id="uuid", epoch="bigint")
    return (
        text(f"""
            WITH held AS MATERIALIZED (
                SELECT jobs.id
                FROM {around} jobs JOIN {dispatched}
                    ON jobs.id = dispatched.job_id AND jobs.epoch = dispatched.epoch
                WHERE status IS NOT DISTINCT FROM 'queued' AND kind = ANY(CAST(:kinds AS text[]))
                ORDER BY jobs.id FOR NO KEY UPDATE OF jobs {locked}
            )
            UPDATE jobs
            SET status = 'running',
                version = version + 1,
                attempt = attempt + 1,
                worker_id = :worker_id,
                lease_expires_at = now() + :lease,
                started_at = coalesce(started_at, now())
            FROM held WHERE jobs.id = held.id
            RETURNING {", ".join(f"jobs.{name}" for name in ClaimedJob._fields)}
        """)  # noqa: S608 (words of our own)
        .bindparams(bindparam("worker_id", type_=Uuid()), bindparam("lease", type_=Interval()))
        .columns(*(getattr(Job, name) for name in ClaimedJob._fields))
    )


_CLAIM_FREE: Final = _claiming(around="", locked="SKIP LOCKED")
_CLAIM: Final = _claiming(around=f"{_WITH_LOCK_TIMEOUT},", locked="").bindparams(
    bindparam("lock_timeout", type_=Text())
)

_ENDS: Final = unnested(
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
#: Who has asked for an end does not want to wait for a next try; but one that cost nothing may come to nothing again,
#: and would be made without end if it did not wait. Counters are bytes of a copy, of which none can fail:
#: of a job that has succeeded it is all of it, even if it was an earlier attempt that copied it.
_SETTLE: Final = (
    text(f"""
        WITH ends AS MATERIALIZED (
            SELECT ends.*
            FROM {_WITH_LOCK_TIMEOUT},
                jobs JOIN {_ENDS} ON jobs.id = ends.job_id AND jobs.epoch = ends.epoch
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
    """)  # noqa: S608 (words of our own)
    .bindparams(bindparam("worker_id", type_=Uuid()), bindparam("lock_timeout", type_=Text()))
    .columns(id=Uuid())
)


class LeaseRepository:
    """The job table as workers see it, from one transaction."""

    def __init__(self, session: AsyncSession | AsyncConnection) -> None:
        self._session = session

    async def claim(
        self,
        dispatches: Sequence[Dispatch],
        *,
        worker_id: UUID,
        kinds: Collection[str],
        lease: float,
        lock_timeout: float | None = None,
    ) -> Sequence[ClaimedJob]:
        """Take the queued jobs among ``rings`` whose ring is still the current one, for ``lease`` seconds.

        A kind that is not among ``kinds`` is left for a worker of a newer version. A row that somebody has locked is
        passed over, unless there is a ``patience`` for it, in seconds.
        """
        given = {
            **as_arrays(dispatches),
            "kinds": list(kinds),
            "worker_id": worker_id,
            "lease": timedelta(seconds=lease),
        }
        if lock_timeout is None:
            rows = await self._session.execute(_CLAIM_FREE, given)
        else:
            rows = await self._session.execute(_CLAIM, {**given, "lock_timeout": _milliseconds(lock_timeout)})
        return [ClaimedJob(*row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement], *, worker_id: UUID, lock_timeout: float) -> set[UUID]:
        """End these attempts, if they are still ``worker_id``'s; returns the jobs that were.

        ``patience``: for how many seconds this and the rest of the transaction wait for a row that somebody has locked.
        A settlement that comes twice, because the answer to its COMMIT was lost, finds nothing the second time.
        """
        given: dict[str, Any] = as_arrays(settlements)
        for name in ("result", "error"):
            given[name] = [None if payload is None else as_json(payload) for payload in given[name]]
        given |= {"worker_id": worker_id, "lock_timeout": _milliseconds(lock_timeout)}
        return set((await self._session.scalars(_SETTLE, given)).all())

    async def renew(
        self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress], *, worker_id: UUID, lease: float
    ) -> Sequence[Renewal]:
        """Extend the leases of these jobs by ``lease`` seconds from now, as far as they are still ``worker_id``'s.

        In passing it is written down how far they are; who looks only hears of a change if there is one. Rows that
        somebody has locked are passed over: one that waits must not cost the others their leases.
        """
        rows = ({"id": job_id} | (progress[job_id]._asdict() if job_id in progress else {}) for job_id in job_ids)
        asked = given_rows(rows, id=Uuid(), done=Job.total.type, total=Job.total.type)
        done, total = func.coalesce(asked.c.done, Job.succeeded), func.coalesce(asked.c.total, Job.total)
        moved = Job.succeeded.is_distinct_from(done) | Job.total.is_distinct_from(total)
        free = select(Job.id).where(Job.id.in_(job_ids)).with_for_update(skip_locked=True, key_share=True)
        query = (
            update(Job)
            .where(Job.id == asked.c.id, Job.id.in_(free), *_leased_by(worker_id))
            .values(
                lease_expires_at=from_now(lease),
                version=Job.version + case((moved, 1), else_=0),
                **_progress(done, total),
            )
            .returning(Job.id, Job.cancel_requested_at.is_not(None))
            .execution_options(synchronize_session=False)
        )
        return [Renewal(*row) for row in await self._session.execute(query)]

    async def held_by(self, job_ids: Collection[UUID], *, worker_id: UUID) -> set[UUID]:
        """Tell which of these jobs are ``worker_id``'s, locked or not."""
        query = select(Job.id).where(Job.id.in_(job_ids), *_leased_by(worker_id))
        return set((await self._session.scalars(query)).all())

    async def record_heartbeat(
        self, worker: Worker, *, lease: float, afresh: bool, min_timeout: float = MIN_HEARTBEAT_TIMEOUT
    ) -> None:
        """Write down that this worker is alive, and since when it has been without a gap of a lease (seconds).

        ``afresh`` where there was a gap that PostgreSQL did not see: the worker did, or it has just begun. A last beat
        in the future is a gap too: PostgreSQL's clock has stepped back.
        """
        row = {"id": worker.id, "host": worker.host, "pid": worker.pid}
        row["max_renewal_delay"] = max_renewal_delay(lease, min_timeout)
        gap = literal(afresh) | ~Worker.heartbeat_at.between(from_now(-lease), from_now(lease))
        again = {
            "heartbeat_at": func.now(),
            "uninterrupted_since": case((gap, func.now()), else_=Worker.uninterrupted_since),
            "max_renewal_delay": row["max_renewal_delay"],
        }
        await self._session.execute(insert(Worker).values(row).on_conflict_do_update(index_elements=["id"], set_=again))

    async def count_workers(self, lease: float) -> int:
        """Count the workers that have beaten in the last ``lease`` seconds."""
        alive = select(func.count()).where(Worker.heartbeat_at > from_now(-lease))
        return (await self._session.scalars(alive)).one()

    async def delete_worker(self, worker_id: UUID) -> None:
        """Strike a worker off that has said goodbye."""
        await self._session.execute(delete(Worker).where(Worker.id == worker_id))


def heartbeat_timeout(lease: float, minimum: float = MIN_HEARTBEAT_TIMEOUT) -> float:
    """Return how many seconds a heartbeat waits for its answer before it is tried again on another connection."""
    return max(min(lease / 3, 5.0), minimum)


def max_renewal_delay(lease: float, minimum: float = MIN_HEARTBEAT_TIMEOUT) -> float:
    """Return the maximum number of seconds from PostgreSQL's return until a worker has renewed its leases.

    1. The worker has noticed the outage: one heartbeat times out, then the next one succeeds.
    2. It has not noticed, as after a step of PostgreSQL's clock: one heartbeat interval, then one heartbeat.

    ``minimum`` is that of `heartbeat_timeout`.
    """
    timeout = heartbeat_timeout(lease, minimum)
    return timeout + max(timeout, lease / BEATS_PER_LEASE)


def _leased_by(worker_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """At work in the hands of this worker. A job that was handed over to its lanes runs on, but in nobody's hands."""
    return Job.worker_id == worker_id, Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_not(None)


def _progress(done: ColumnElement[Any], total: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """Set the counters of a job: bytes of a copy, of which none can fail; whatever is null stays as it is."""
    return {
        "total": func.coalesce(total, Job.total),
        "succeeded": func.coalesce(done, Job.succeeded),
        "failed": func.coalesce(Job.failed, case((total.is_not(None), 0))),
        "skipped": func.coalesce(Job.skipped, case((total.is_not(None), 0))),
    }


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
