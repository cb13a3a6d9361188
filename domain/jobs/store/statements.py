"""The frequent statements on jobs, as text: building them takes SQLAlchemy longer than PostgreSQL takes to run them.

Every job and every chunk of a bulk job needs some of them; `benchmarks/race.py throughput` and `benchmarks/bulk.py`
show their cost. Each is prepared against the schema by a test. Everything else is written with SQLAlchemy in the
repositories.

1. Claims and settlements lock the rows in the order of their ids before the UPDATE. An UPDATE locks rows in the order
   in which it finds them, so two that find them in different orders would deadlock.
2. Both must find the rows by the primary key. If PostgreSQL estimates that few jobs are queued or running, it prefers
   the partial index of those, which is full of dead entries under load. It uses a partial index only if the WHERE
   clause implies the condition of the index, and it cannot prove that for IS NOT DISTINCT FROM and num_nulls().
"""

from typing import Final

from sqlalchemy import BigInteger, Interval, Text, TextualSelect, Uuid, bindparam, column, text

from domain.db.sql import insertion, recordset, unnested
from domain.jobs.attempt import CLAIMED_COLUMNS
from domain.jobs.model import Job

#: Insert new jobs for which maintenance sends the messages.
ADD_UNDISPATCHED: Final = text(insertion(Job, nulls=("dispatched_at",)))

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
                    AND (jobs.backend IS NULL OR jobs.backend = ANY(CAST(:backends AS text[])))
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


#: Claim jobs whose rows are not locked.
CLAIM: Final = _claim_statement(extra_from="", locking="SKIP LOCKED")
#: Claim jobs, waiting for locked rows.
CLAIM_WAITING: Final = _claim_statement(extra_from=f"{_WITH_LOCK_TIMEOUT},", locking="").bindparams(
    bindparam("lock_timeout", type_=Text())
)

#: The fields of `Settlement`.
_SETTLEMENTS: Final = recordset(
    "ends",
    job_id="uuid",
    epoch="bigint",
    status="text",
    result="jsonb",
    error="jsonb",
    delay="float",
    give_back="bigint",
    copied="bigint",
)
#: Write what has become of attempts.
#:
#: 1. A job that is to be cancelled skips its retry delay, except if the attempt is given back: a free retry (storage
#:    busy) could otherwise loop without a pause.
#: 2. The counters of a copying job are bytes, and none of them can fail or be skipped. A successful job has copied all
#:    of its bytes, even if it was an earlier attempt that copied them.
SETTLE: Final = (
    text(f"""
        WITH ends AS MATERIALIZED (
            SELECT ends.*
            FROM {_WITH_LOCK_TIMEOUT},
                jobs JOIN {_SETTLEMENTS} ON jobs.id = ends.job_id AND jobs.epoch = ends.epoch
            WHERE jobs.id = ANY(CAST(:ids AS uuid[])) AND worker_id = :worker_id
                AND jobs.status IS NOT DISTINCT FROM 'running' AND num_nulls(lease_expires_at) = 0
            ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
        )
        UPDATE jobs
        SET status = ends.status,
            version = version + 1,
            result = ends.result,
            error = ends.error,
            attempt = attempt - ends.give_back,
            epoch = jobs.epoch + CASE WHEN ends.status = 'queued' THEN 1 ELSE 0 END,
            run_at = now() + interval '1 s' *
                CASE WHEN cancel_requested_at IS NULL OR ends.give_back > 0 THEN ends.delay ELSE 0 END,
            dispatched_at = CASE WHEN ends.status <> 'queued' THEN dispatched_at END,
            lease_expires_at = NULL,
            waiting_for = NULL,
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

#: Lock a job that an attempt still holds.
LOCK_HELD: Final = text("""
    SELECT 1 FROM jobs
    WHERE id = :id AND epoch = :epoch AND worker_id = :worker_id AND status = 'running'
    FOR NO KEY UPDATE
""")
#: Read whether the end of a bulk job was requested.
IS_CANCELLED: Final = text("SELECT cancel_requested_at IS NOT NULL FROM jobs WHERE id = :parent_id")
_SUCCEEDED, _FAILED, _SKIPPED = "succeeded + :succeeded", "failed + :failed", "skipped + :skipped"
_DONE: Final = f"{_SUCCEEDED} + {_FAILED} + {_SKIPPED} >= total"
#: Count finished items of a bulk job; the last one ends it.
ADD_COUNTS: Final = text(f"""
    UPDATE jobs
    SET succeeded = {_SUCCEEDED},
        failed = {_FAILED},
        skipped = {_SKIPPED},
        version = version + 1,
        status = CASE
            WHEN NOT {_DONE} THEN status
            WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
            WHEN {_FAILED} = 0 THEN 'succeeded'
            WHEN {_SUCCEEDED} = 0 THEN 'failed'
            ELSE 'partial'
        END,
        error = CASE
            WHEN NOT {_DONE} THEN error
            WHEN {_FAILED} > 0 THEN jsonb_build_object(
                'code', 'items-failed',
                'detail', concat({_FAILED}, ' of ', total, ' failed; the job''s items say which and why.')
            )
        END,
        finished_at = CASE WHEN {_DONE} THEN now() END
    WHERE id = :parent_id AND status = 'running'
    RETURNING status
""")  # noqa: S608 (only constants)
