"""Queries on the ledger: of bulk jobs (`Ledger`) and of lanes (`LaneItems`). Takes a session, never commits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Interval,
    TextClause,
    Uuid,
    and_,
    bindparam,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.model import FINISHED, Item, ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.requests import Selection
from domain.db.sql import array_rows, as_records, recordset
from domain.volumes.model import Volume

#: Timeout in seconds of the statement that plans a job: for a million volumes it takes some ten seconds.
PLAN_SECONDS: Final = 50
#: Maximum number of items that `Ledger.close` finishes in one statement.
CLOSE_BATCH: Final = 5000
#: How `Ledger.close` ends the items of a cancelled job, and those whose lanes all failed.
AS_CANCELLED: Final = {"status": ItemStatus.SKIPPED, "code": ItemCode.CANCELLED}
AS_LANES_LOST: Final = {"status": ItemStatus.FAILED, "code": ItemCode.LANES_LOST}
#: The pause before a busy volume is retried equals the time it has been busy, between these limits.
_PAUSES: Final = {"min_pause": timedelta(seconds=1), "max_pause": timedelta(seconds=10)}


# --- the statements of lanes, as text -----------------------------------------------------------------------------
#
# A bulk job may pass a million rows through them: building expressions or JSON would cost more than everything else;
# `benchmarks/bulk.py` shows it. Each is prepared against the schema by a test. The statements on behalf of the parent
# job are written with SQLAlchemy.

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
    FROM job_items WHERE job_id = :job_id AND backend = :backend AND status = 'pending' AND due_at <= now()
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

_UPDATES: Final = recordset(
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


# --- the table ----------------------------------------------------------------------------------------------------


class Ledger:
    """The ledgers of bulk jobs, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def plan(self, job_id: UUID, project_id: UUID, selection: Selection) -> None:
        """Insert an item for every selected volume of a project, in one statement of up to `PLAN_SECONDS`; idempotent.

        An id without a volume in the project gets an item too.
        """
        volumes = _volumes if selection.ids is None else _named_volumes
        await self._insert(volumes(job_id, project_id, selection))

    async def plan_retry(self, job_id: UUID, earlier_id: UUID) -> None:
        """Insert the items that failed or were cancelled in an earlier job.

        The sizes that the earlier job wrote down stay binding, so that no volume grows twice.
        """
        unachieved = or_(Item.status == ItemStatus.FAILED, Item.code == ItemCode.CANCELLED)
        items = select(literal(job_id), Item.volume_id, Item.backend, _pending(), Item.from_size, Item.to_size)
        await self._insert(items.where(Item.job_id == earlier_id, unachieved))

    async def counts(self, job_id: UUID) -> dict[str, int]:
        """Count a job's items: in total, and the finished ones by status."""
        query = select(Item.status, func.count()).where(Item.job_id == job_id).group_by(Item.status)
        by_status = {row[0]: row[1] for row in await self._session.execute(query)}
        return {"total": sum(by_status.values())} | {str(status): by_status.get(status, 0) for status in FINISHED}

    async def page(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        """Read up to ``limit`` + 1 items by volume id; the extra one shows that there is a next page."""
        query = select(Item).where(Item.job_id == job_id).order_by(Item.volume_id).limit(limit + 1)
        if status is not None:
            query = query.where(Item.status == status)
        if after is not None:
            query = query.where(Item.volume_id > after)
        return (await self._session.scalars(query)).all()

    async def next_due(self, lane: Lane) -> float | None:
        """Return the seconds until the next pending item of the lane's backend is due; None if none is pending."""
        query = select(func.min(Item.due_at) - func.now()).where(
            Item.job_id == lane.parent_id, Item.backend == lane.backend, Item.status == ItemStatus.PENDING
        )
        waiting: timedelta | None = await self._session.scalar(query)
        return None if waiting is None else max(0.0, waiting.total_seconds())

    async def close(
        self, job_id: UUID, previous: ItemStatus, ending: Mapping[str, str], *, backend: str | None = None
    ) -> Sequence[ItemRef]:
        """Finish up to `CLOSE_BATCH` items that have the status ``previous``, without any work; return them.

        Only those of a ``backend``, if one is given.
        """
        batch = select(Item.volume_id).where(Item.job_id == job_id, Item.status == previous)
        if backend is not None:
            batch = batch.where(Item.backend == backend)
        batch = batch.limit(CLOSE_BATCH).with_for_update(skip_locked=True)
        query = update(Item).where(Item.job_id == job_id, Item.volume_id.in_(_run_once(batch)))
        return await self._returned(query.values(ending))

    async def delete_plan(self, job_id: UUID) -> None:
        """Delete the pending items of a job that never got lanes."""
        await self._session.execute(delete(Item).where(Item.job_id == job_id, Item.status == ItemStatus.PENDING))

    async def has_claimed(self, lane: Lane) -> bool:
        """Return whether the lane still has claimed items."""
        held = select(literal(1)).where(Item.job_id == lane.parent_id, Item.lane_id == lane.job_id)
        return await self._session.scalar(held.where(Item.status == ItemStatus.CLAIMED).limit(1)) is not None

    async def unfinished_by_backend(self, job_id: UUID) -> dict[str, int]:
        """Count the items of each backend that are pending or claimed."""
        unfinished = select(Item.backend, func.count()).where(Item.job_id == job_id, Item.status.not_in(FINISHED))
        rows = await self._session.execute(unfinished.group_by(Item.backend).order_by(Item.backend))
        return {row[0]: row[1] for row in rows}

    async def reassign(self, job_id: UUID, backend: str, lane_id: UUID) -> Sequence[ItemRef]:
        """Reassign the claimed items of a job's dead lanes on a backend to a new lane; return them."""
        query = update(Item).where(Item.job_id == job_id, Item.backend == backend, Item.status == ItemStatus.CLAIMED)
        # -1 is below every epoch, so that the new lane's first attempt reclaims them.
        return await self._returned(query.values(lane_id=lane_id, epoch=-1))

    async def has_unfinished(self, job_id: UUID) -> bool:
        """Return whether any item is pending or claimed."""
        unfinished = select(literal(1)).where(Item.job_id == job_id, Item.status.not_in(FINISHED))
        return await self._session.scalar(unfinished.limit(1)) is not None

    async def _insert(self, rows: Any) -> None:
        columns = ["job_id", "volume_id", "backend", "status", "from_size", "to_size"]
        statement = insert(Item).from_select(columns, rows, include_defaults=False)
        await self._session.execute(statement.on_conflict_do_nothing())

    async def _returned(self, query: Any) -> Sequence[ItemRef]:
        columns = query.returning(Item.volume_id, Item.status, Item.to_size, Item.snapshot_id)
        rows = await self._session.execute(columns.execution_options(synchronize_session=False))
        return [ItemRef(*row) for row in rows]


class LaneItems:
    """The items of one attempt at a lane, within one transaction."""

    def __init__(self, session: AsyncSession, lane: Lane) -> None:
        self._session = session
        self._lane_ids = {"job_id": lane.parent_id, "lane_id": lane.job_id, "epoch": lane.epoch}
        self._backend = lane.backend

    async def reclaim(self) -> Sequence[ItemRef]:
        """Claim the items that an earlier attempt at this lane had claimed before it was killed or interrupted."""
        return await self._refs(RECLAIM, ItemStatus.CLAIMED)

    async def claim_due(self, limit: int) -> Sequence[ItemRef]:
        """Mark up to ``limit`` due items as claimed; skip items locked by other lanes."""
        return await self._refs(CLAIM_DUE, ItemStatus.CLAIMED, limit=limit, backend=self._backend)

    async def lock_due(self, limit: int) -> Sequence[ItemRef]:
        """Lock the items that `claim_due` would claim, for a transaction that writes a decision for each of them."""
        return await self._refs(LOCK_DUE, ItemStatus.PENDING, limit=limit, backend=self._backend)

    async def write(self, updates: Sequence[ItemUpdate], *, previous: ItemStatus) -> None:
        """Write decisions. ``previous``: PENDING if the items are locked by `lock_due`, CLAIMED if they are claimed."""
        if not updates:
            return
        await self._session.execute(WRITE[previous], {**self._lane_ids, "rows": as_records(updates)})

    async def finish(self, updates: Sequence[ItemUpdate]) -> Sequence[ItemUpdate]:
        """Write the results of items that this attempt still holds; return the updates that were written."""
        if not updates:
            return []
        written = set((await self._session.scalars(FINISH, {**self._lane_ids, "rows": as_records(updates)})).all())
        return updates if len(written) == len(updates) else [one for one in updates if one.volume_id in written]

    async def postpone(self, volume_ids: Collection[UUID], *, previous: ItemStatus, busy_seconds: float) -> int:
        """Reschedule the items of busy volumes, or skip those busy for ``busy_seconds``; return how many were skipped.

        ``previous`` as for `write`.
        """
        if not volume_ids:
            return 0
        values = {"volume_ids": list(volume_ids), "max_busy": timedelta(seconds=busy_seconds), **_PAUSES}
        statuses = (await self._session.scalars(POSTPONE[previous], {**self._lane_ids, **values})).all()
        return statuses.count(ItemStatus.SKIPPED)

    async def _refs(self, statement: TextClause, status: ItemStatus, **values: Any) -> Sequence[ItemRef]:
        rows = await self._session.execute(statement, {**self._lane_ids, **values})
        return [ItemRef(volume_id, status, to_size, snapshot_id) for volume_id, to_size, snapshot_id in rows]


async def clear_ledgers(session: AsyncSession, job_ids: Collection[UUID], limit: int) -> int:
    """Delete up to ``limit`` items of jobs that are being pruned; return how many were deleted."""
    batch = select(Item.job_id, Item.volume_id).where(Item.job_id.in_(job_ids)).limit(limit)
    query = delete(Item).where(tuple_(Item.job_id, Item.volume_id).in_(batch)).returning(Item.volume_id)
    return len((await session.scalars(query.execution_options(synchronize_session=False))).all())


def selected_volumes(project_id: UUID, selection: Selection, *columns: Any) -> Any:
    """Select columns of the volumes of a selection in a project, in the order of their ids, without locking them."""
    return select(*columns).where(Volume.project_id == project_id, *_selected(selection)).order_by(Volume.id)


def _selected(selection: Selection) -> Iterable[ColumnElement[bool]]:
    if selection.ids is not None:
        # As one array: with ten thousand parameters, building the statement takes longer than running it.
        yield Volume.id == func.any(literal(list(selection.ids), ARRAY(Uuid())))
    if selection.labels:
        yield Volume.labels.contains(selection.labels)
    if selection.backend is not None:
        yield Volume.backend == selection.backend


def _volumes(job_id: UUID, project_id: UUID, selection: Selection) -> Any:
    # In the order in which lanes claim them, so that the items of a chunk share pages.
    columns = (literal(job_id), Volume.id, Volume.backend, _pending(), Volume.size, null())
    return selected_volumes(project_id, selection, *columns)


def _named_volumes(job_id: UUID, project_id: UUID, selection: Selection) -> Any:
    """Select volumes by id. An id without a volume gets an item too, which is then skipped as ``volume-gone``."""
    named = array_rows(({"id": volume_id} for volume_id in selection.ids or ()), id=Uuid())
    backend = func.coalesce(Volume.backend, "")
    rows = select(literal(job_id), named.c.id, backend, _pending(), Volume.size, null())
    found = and_(Volume.id == named.c.id, Volume.project_id == project_id)
    return rows.select_from(named.outerjoin(Volume, found)).where(or_(Volume.id.is_(None), and_(*_selected(selection))))


def _pending() -> Any:
    return literal(ItemStatus.PENDING.value)


def _run_once(query: Any) -> Any:
    """Wrap a query with LIMIT and SKIP LOCKED in a CTE, so that it runs once.

    As a plain subquery, the planner may run it once per outer row, and it would return other rows each time.
    """
    return select(query.cte())
