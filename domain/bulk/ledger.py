"""Queries of parent jobs on the ledger; `lane_items` has those of lanes. Takes a session, never commits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Uuid,
    and_,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.model import Item
from domain.bulk.selection import Selection
from domain.bulk.states import FINISHED, ItemCode, ItemStatus
from domain.db.sql import array_rows
from domain.jobs.claimed import ClaimedJob
from domain.volumes.model import Volume

#: Timeout of the statement that plans a job: for a million volumes it takes some ten seconds.
PLAN_SECONDS: Final = 50
#: Maximum number of items that `Ledger.close` finishes in one statement.
CLOSE_BATCH: Final = 5000


class Lane(NamedTuple):
    """One attempt at a lane, the job ``job_id`` of the bulk job ``parent_id``; ``params`` has what it needs of that."""

    parent_id: UUID
    job_id: UUID
    epoch: int
    worker_id: UUID | None
    params: Mapping[str, Any]
    created_by: str | None = None

    @classmethod
    def from_job(cls, job: ClaimedJob) -> Self:
        """Build the lane from its claimed job."""
        if job.parent_id is None:
            raise RuntimeError(f"{job.kind} {job.id} has no parent")
        return cls(job.parent_id, job.id, job.epoch, job.worker_id, job.params, job.created_by)

    @property
    def slots(self) -> int:
        """Maximum number of volumes that the lane works on at once."""
        slots: int = self.params["slots"]
        return slots

    @property
    def lanes(self) -> int | None:
        """Number of lanes added together with this one; None if an early version, which did not store it, added it."""
        return self.params.get("lanes")

    @property
    def is_last(self) -> bool:
        """Whether too many lanes failed before this one, so that it only seals and fails what they left."""
        return bool(self.params["last"])


class ItemRef(NamedTuple):
    """The columns of an item that lanes need. A plain tuple: a bulk job may have a million items."""

    volume_id: UUID
    status: ItemStatus
    to_size: int | None = None
    snapshot_id: UUID | None = None


class ItemUpdate(NamedTuple):
    """A decision about an item, or its result. CLAIMED: to be worked on; PENDING: busy, to be retried later."""

    volume_id: UUID
    status: ItemStatus
    code: str | None = None
    detail: str | None = None
    from_size: int | None = None
    to_size: int | None = None
    used: int | None = None
    snapshot_id: UUID | None = None


class Ledger:
    """The ledgers of bulk jobs, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def plan(self, job_id: UUID, selection: Selection) -> None:
        """Insert an item for every selected volume, in one statement of up to `PLAN_SECONDS`; idempotent."""
        await self._insert(_volumes(job_id, selection) if selection.ids is None else _named_volumes(job_id, selection))

    async def plan_retry(self, job_id: UUID, earlier_id: UUID) -> None:
        """Insert the items that failed or were cancelled in an earlier job.

        The sizes that the earlier job wrote down stay binding, so that no volume grows twice.
        """
        unachieved = or_(Item.status == ItemStatus.FAILED, Item.code == ItemCode.CANCELLED)
        items = select(literal(job_id), Item.volume_id, _pending(), Item.from_size, Item.used, Item.to_size)
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

    async def next_due(self, job_id: UUID) -> float | None:
        """Return the seconds until the next pending item is due; None if no item is pending."""
        query = select(func.min(Item.due_at) - func.now()).where(
            Item.job_id == job_id, Item.status == ItemStatus.PENDING
        )
        waiting: timedelta | None = await self._session.scalar(query)
        return None if waiting is None else max(0.0, waiting.total_seconds())

    async def close(
        self, job_id: UUID, *, previous: ItemStatus, status: ItemStatus, code: ItemCode
    ) -> Sequence[ItemRef]:
        """Finish up to `CLOSE_BATCH` items that have the status ``previous``, without any work; return them."""
        batch = select(Item.volume_id).where(Item.job_id == job_id, Item.status == previous)
        batch = batch.limit(CLOSE_BATCH).with_for_update(skip_locked=True)
        query = update(Item).where(Item.job_id == job_id, Item.volume_id.in_(_run_once(batch)))
        return await self._returned(query.values(status=status, code=code))

    async def delete_plan(self, job_id: UUID) -> None:
        """Delete the pending items of a job that never got lanes."""
        await self._session.execute(delete(Item).where(Item.job_id == job_id, Item.status == ItemStatus.PENDING))

    async def has_claimed(self, lane: Lane) -> bool:
        """Return whether the lane still has claimed items."""
        held = select(literal(1)).where(Item.job_id == lane.parent_id, Item.lane_id == lane.job_id)
        return await self._session.scalar(held.where(Item.status == ItemStatus.CLAIMED).limit(1)) is not None

    async def reassign(self, job_id: UUID, lane_id: UUID) -> Sequence[ItemRef]:
        """Reassign the claimed items of a job's dead lanes to a new lane; return them."""
        query = update(Item).where(Item.job_id == job_id, Item.status == ItemStatus.CLAIMED)
        # -1 is below every epoch, so that the new lane's first attempt reclaims them.
        return await self._returned(query.values(lane_id=lane_id, epoch=-1))

    async def has_unfinished(self, job_id: UUID) -> bool:
        """Return whether any item is pending or claimed."""
        unfinished = select(literal(1)).where(Item.job_id == job_id, Item.status.not_in(FINISHED))
        return await self._session.scalar(unfinished.limit(1)) is not None

    async def _insert(self, rows: Any) -> None:
        columns = ["job_id", "volume_id", "status", "from_size", "used", "to_size"]
        statement = insert(Item).from_select(columns, rows, include_defaults=False)
        await self._session.execute(statement.on_conflict_do_nothing())

    async def _returned(self, query: Any) -> Sequence[ItemRef]:
        columns = query.returning(Item.volume_id, Item.status, Item.to_size, Item.snapshot_id)
        rows = await self._session.execute(columns.execution_options(synchronize_session=False))
        return [ItemRef(*row) for row in rows]


async def clear_ledgers(session: AsyncSession, job_ids: Collection[UUID], limit: int) -> int:
    """Delete up to ``limit`` items of jobs that are being pruned; return how many were deleted."""
    batch = select(Item.job_id, Item.volume_id).where(Item.job_id.in_(job_ids)).limit(limit)
    query = delete(Item).where(tuple_(Item.job_id, Item.volume_id).in_(batch)).returning(Item.volume_id)
    return len((await session.scalars(query.execution_options(synchronize_session=False))).all())


def selected_volumes(selection: Selection) -> Any:
    """Select the volumes of a selection without locking them."""
    return select(Volume).where(*_selected(selection)).order_by(Volume.id)


def _selected(selection: Selection) -> Iterable[ColumnElement[bool]]:
    if selection.ids is not None:
        yield Volume.id.in_(selection.ids)
    if selection.labels:
        yield Volume.labels.contains(selection.labels)
    if selection.backend is not None:
        yield Volume.backend == selection.backend


def _volumes(job_id: UUID, selection: Selection) -> Any:
    rows = select(literal(job_id), Volume.id, _pending(), Volume.size, Volume.used, null())
    # In the order in which lanes claim them, so that the items of a chunk share pages.
    return rows.where(*_selected(selection)).order_by(Volume.id)


def _named_volumes(job_id: UUID, selection: Selection) -> Any:
    """Select volumes by id. An id without a volume gets an item too, which is then skipped as ``volume-gone``."""
    named = array_rows(({"id": volume_id} for volume_id in selection.ids or ()), id=Uuid())
    rows = select(literal(job_id), named.c.id, _pending(), Volume.size, Volume.used, null())
    return rows.select_from(named.outerjoin(Volume, Volume.id == named.c.id)).where(
        or_(Volume.id.is_(None), and_(true(), *_selected(selection)))
    )


def _pending() -> Any:
    return literal(ItemStatus.PENDING.value)


def _run_once(query: Any) -> Any:
    """Wrap a query with LIMIT and SKIP LOCKED in a CTE, so that it runs once.

    As a plain subquery, the planner may run it once per outer row, and it would return other rows each time.
    """
    return select(query.cte())
