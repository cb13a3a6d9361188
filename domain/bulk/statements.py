"""The statements of lanes on the ledger, as text: a bulk job may pass a million rows through them.

Building expressions or JSON would cost more than everything else; `benchmarks/bulk.py` shows it. Each is prepared
against the schema by a test. The statements on behalf of the parent job are written with SQLAlchemy in `ledger`.
"""

from typing import Final

from sqlalchemy import Interval, TextClause, bindparam, text

from domain.bulk.model import ItemStatus
from domain.db.sql import unnested

#: Items claimed by this attempt at the lane.
_HELD: Final = "items.status = 'claimed' AND items.lane_id = :lane_id AND items.epoch = :epoch"
#: Items that are still pending and only locked, by the current transaction, which must write every one of them. IS NOT
#: DISTINCT FROM keeps the planner from using the index of pending items, as in `domain.jobs.store.statements`.
_LOCKED: Final = "items.status IS NOT DISTINCT FROM 'pending'"


def _located_by(chunk: str) -> str:
    """Build the condition that finds items by ``row_ctid``, a column of the materialized query ``chunk``.

    A ledger that has just been planned has no statistics yet. With a join by key, the planner expects a single row and
    reads the whole ledger for each chunk.
    """
    return f"items.ctid = ANY(ARRAY(SELECT row_ctid FROM {chunk})) AND items.ctid = {chunk}.row_ctid"  # noqa: S608


_DUE: Final = """
    FROM job_items WHERE job_id = :job_id AND status = 'pending' AND due_at <= now()
    ORDER BY due_at, volume_id LIMIT :limit FOR UPDATE SKIP LOCKED
"""
LOCK_DUE: Final = text(f"SELECT volume_id, to_size, snapshot_id {_DUE}")
#: MATERIALIZED makes the subquery run once. Otherwise the planner may run it once per row, and because of SKIP LOCKED
#: it would return other rows each time.
CLAIM_DUE: Final = text(f"""
    WITH due AS MATERIALIZED (SELECT ctid AS row_ctid {_DUE})
    UPDATE job_items AS items SET status = 'claimed', lane_id = :lane_id, epoch = :epoch
    FROM due WHERE {_located_by("due")}
    RETURNING items.volume_id, items.to_size, items.snapshot_id
""")  # noqa: S608 (built from constants)
RECLAIM: Final = text("""
    UPDATE job_items SET epoch = :epoch
    WHERE job_id = :job_id AND lane_id = :lane_id AND status = 'claimed' AND epoch < :epoch
    RETURNING volume_id, to_size, snapshot_id
""")

_UPDATES: Final = unnested(
    "updates",
    volume_id="uuid",
    status="text",
    code="text",
    detail="text",
    from_size="bigint",
    to_size="bigint",
    used="bigint",
    snapshot_id="uuid",
)
_LOCATED_UPDATES: Final = f"""located AS MATERIALIZED (
    SELECT *, (SELECT ctid FROM job_items WHERE job_id = :job_id AND volume_id = updates.volume_id) AS row_ctid
    FROM {_UPDATES}
)"""  # noqa: S608 (built from constants)


def _write_statement(condition: str) -> TextClause:
    """Build the SQL that writes decisions."""
    return text(f"""
        WITH {_LOCATED_UPDATES}
        UPDATE job_items AS items
        SET status = located.status, lane_id = :lane_id, epoch = :epoch, code = located.code, detail = located.detail,
            from_size = coalesce(located.from_size, items.from_size), to_size = located.to_size,
            used = coalesce(located.used, items.used), snapshot_id = located.snapshot_id
        FROM located
        WHERE {_located_by("located")} AND {condition}
    """)  # noqa: S608 (built from constants)


FINISH: Final = text(f"""
    WITH {_LOCATED_UPDATES}
    UPDATE job_items AS items
    SET status = located.status, code = located.code, detail = located.detail, snapshot_id = located.snapshot_id
    FROM located
    WHERE {_located_by("located")} AND {_HELD}
    RETURNING items.volume_id
""")  # noqa: S608 (built from constants)


def _postpone_statement(condition: str) -> TextClause:
    """Build the SQL that reschedules busy items, or skips those that have been busy for too long."""
    return text(f"""
        WITH busy AS MATERIALIZED (
            SELECT ctid AS row_ctid, coalesce(busy_since, now()) AS since,
                coalesce(busy_since, now()) <= now() - :max_busy AS gave_up
            FROM job_items WHERE job_id = :job_id AND volume_id = ANY(CAST(:volume_ids AS uuid[]))
        )
        UPDATE job_items AS items
        SET status = CASE WHEN gave_up THEN 'skipped' ELSE 'pending' END,
            code = 'volume-busy',
            detail = CASE WHEN gave_up THEN 'The volume was busy with other operations.' END,
            busy_since = since,
            due_at = now() + least(greatest(now() - since, :min_pause), :max_pause)
        FROM busy
        WHERE {_located_by("busy")} AND {condition}
        RETURNING items.status
    """).bindparams(  # noqa: S608 (built from constants)
        *(bindparam(name, type_=Interval()) for name in ("min_pause", "max_pause", "max_busy"))
    )


WRITE: Final = {ItemStatus.PENDING: _write_statement(_LOCKED), ItemStatus.CLAIMED: _write_statement(_HELD)}
POSTPONE: Final = {ItemStatus.PENDING: _postpone_statement(_LOCKED), ItemStatus.CLAIMED: _postpone_statement(_HELD)}
