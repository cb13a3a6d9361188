"""What is asked of the ledger of a whole job, by name; `claims` has what lanes ask. Takes a session, never commits."""

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
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.model import Item
from domain.bulk.selection import Selection
from domain.bulk.states import FINISHED, ItemCode, ItemStatus
from domain.db.sql import given_rows
from domain.jobs.claimed import ClaimedJob
from domain.volumes.model import Volume

#: A plan over a million volumes is one statement of some ten seconds.
_PLAN_TIMEOUT_SECONDS: Final = 50
#: So many items are finished by one statement that nobody will work on any more.
CLOSE_BATCH: Final = 5000


class Lane(NamedTuple):
    """Who claims items: one attempt at a lane. ``params``: what it was told about the whole, which is ``job_id``."""

    job_id: UUID
    lane_id: UUID
    epoch: int
    worker_id: UUID | None
    params: Mapping[str, Any]
    created_by: str | None = None

    @classmethod
    def from_job(cls, order: ClaimedJob) -> Self:
        """Read what a worker was told."""
        if order.parent_id is None:
            raise RuntimeError(f"{order.kind} {order.id} is part of nothing")
        return cls(order.parent_id, order.id, order.epoch, order.worker_id, order.params, order.created_by)

    @property
    def slots(self) -> int:
        """How many of its volumes may be worked on at once."""
        slots: int = self.params["slots"]
        return slots

    @property
    def lanes(self) -> int | None:
        """How many lanes were sent out with it; None: by a version in which lanes did not know of each other."""
        return self.params.get("lanes")

    @property
    def is_last(self) -> bool:
        """Whether too many have failed before it, so that it only finds out what they have left behind."""
        return bool(self.params["last"])


class ItemRef(NamedTuple):
    """What lanes must know of an item; a plain tuple, because there are a million of them."""

    volume_id: UUID
    status: ItemStatus
    to_size: int | None = None
    snapshot_id: UUID | None = None


class ItemUpdate(NamedTuple):
    """What becomes of one item. ``status`` CLAIMED means that it is being worked on, PENDING that it waits again."""

    volume_id: UUID
    status: ItemStatus
    code: str | None = None
    detail: str | None = None
    from_size: int | None = None
    to_size: int | None = None
    used: int | None = None
    snapshot_id: UUID | None = None


class Ledger:
    """The ledger, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def plan(self, job_id: UUID, selection: Selection) -> None:
        """Enter every selected volume, in one statement. Planning again adds only what is not there yet."""
        await self._insert(_volumes(job_id, selection) if selection.ids is None else _named_volumes(job_id, selection))

    async def plan_again(self, job_id: UUID, earlier_id: UUID) -> None:
        """Enter what an earlier job did not achieve. The sizes it wrote down stay binding: nothing grows twice."""
        missed = or_(Item.status == ItemStatus.FAILED, Item.code == ItemCode.CANCELLED)
        items = select(literal(job_id), Item.volume_id, _pending(), Item.from_size, Item.used, Item.to_size)
        await self._insert(items.where(Item.job_id == earlier_id, missed))

    async def counts(self, job_id: UUID) -> dict[str, int]:
        """Count a job's items: all, and the finished ones by how they ended."""
        query = select(Item.status, func.count()).where(Item.job_id == job_id).group_by(Item.status)
        by_status = {row[0]: row[1] for row in await self._session.execute(query)}
        return {"total": sum(by_status.values())} | {str(status): by_status.get(status, 0) for status in FINISHED}

    async def page(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        """Read ``limit`` items and one more, by volume."""
        query = select(Item).where(Item.job_id == job_id).order_by(Item.volume_id).limit(limit + 1)
        if status is not None:
            query = query.where(Item.status == status)
        if after is not None:
            query = query.where(Item.volume_id > after)
        return (await self._session.scalars(query)).all()

    async def next_due(self, job_id: UUID) -> float | None:
        """In how many seconds the next pending item is due; None when none is pending."""
        query = select(func.min(Item.due_at) - func.now()).where(
            Item.job_id == job_id, Item.status == ItemStatus.PENDING
        )
        waiting: timedelta | None = await self._session.scalar(query)
        return None if waiting is None else max(0.0, waiting.total_seconds())

    async def close(self, job_id: UUID, *, was: ItemStatus, status: ItemStatus, code: ItemCode) -> Sequence[ItemRef]:
        """Finish up to `CLOSED_AT_ONCE` items that nobody will work on any more; returns them."""
        some = select(Item.volume_id).where(Item.job_id == job_id, Item.status == was)
        some = some.limit(CLOSE_BATCH).with_for_update(skip_locked=True)
        query = update(Item).where(Item.job_id == job_id, Item.volume_id.in_(_once(some)))
        return await self._returned(query.values(status=status, code=code))

    async def delete(self, job_id: UUID) -> None:
        """Take a plan back that was never begun."""
        await self._session.execute(text(f"SET LOCAL statement_timeout = '{_PLAN_TIMEOUT_SECONDS}s'"))
        await self._session.execute(delete(Item).where(Item.job_id == job_id, Item.status == ItemStatus.PENDING))

    async def has_claimed(self, lane: Lane) -> bool:
        """Tell whether the lane still has items in its hands."""
        held = select(literal(1)).where(Item.job_id == lane.job_id, Item.lane_id == lane.lane_id)
        return await self._session.scalar(held.where(Item.status == ItemStatus.CLAIMED).limit(1)) is not None

    async def reassign(self, job_id: UUID, lane_id: UUID) -> Sequence[ItemRef]:
        """Leave the items of a job's dead lanes to a new one; returns them."""
        query = update(Item).where(Item.job_id == job_id, Item.status == ItemStatus.CLAIMED)
        return await self._returned(query.values(lane_id=lane_id, epoch=-1))  # below any epoch: it reclaims them

    async def unfinished(self, job_id: UUID) -> bool:
        """Tell whether any item is still pending or claimed."""
        live = select(literal(1)).where(Item.job_id == job_id, Item.status.not_in(FINISHED))
        return await self._session.scalar(live.limit(1)) is not None

    async def _insert(self, rows: Any) -> None:
        await self._session.execute(text(f"SET LOCAL statement_timeout = '{_PLAN_TIMEOUT_SECONDS}s'"))
        columns = ["job_id", "volume_id", "status", "from_size", "used", "to_size"]
        entering = insert(Item).from_select(columns, rows, include_defaults=False)
        await self._session.execute(entering.on_conflict_do_nothing())

    async def _returned(self, query: Any) -> Sequence[ItemRef]:
        columns = query.returning(Item.volume_id, Item.status, Item.to_size, Item.snapshot_id)
        rows = await self._session.execute(columns.execution_options(synchronize_session=False))
        return [ItemRef(*row) for row in rows]


async def clear_ledgers(session: AsyncSession, job_ids: Collection[UUID], limit: int) -> int:
    """Strike up to ``limit`` entries off the ledgers of jobs that nobody needs any more; returns how many."""
    some = select(Item.job_id, Item.volume_id).where(Item.job_id.in_(job_ids)).limit(limit)
    deleting = delete(Item).where(tuple_(Item.job_id, Item.volume_id).in_(some)).returning(Item.volume_id)
    return len((await session.scalars(deleting.execution_options(synchronize_session=False))).all())


def selected_volumes(selection: Selection) -> Any:
    """The volumes of a selection, for looking at them only."""
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
    return rows.where(*_selected(selection)).order_by(Volume.id)  # as lanes will take them: neighbours share pages


def _named_volumes(job_id: UUID, selection: Selection) -> Any:
    """Volumes by id; one that does not exist is entered too, so that the ledger can say so."""
    named = given_rows(({"id": volume_id} for volume_id in selection.ids or ()), id=Uuid())
    rows = select(literal(job_id), named.c.id, _pending(), Volume.size, Volume.used, null())
    return rows.select_from(named.outerjoin(Volume, Volume.id == named.c.id)).where(
        or_(Volume.id.is_(None), and_(true(), *_selected(selection)))
    )


def _pending() -> Any:
    return literal(ItemStatus.PENDING.value)


def _once(query: Any) -> Any:
    """Have a query with a limit and locks run once, whatever the plan.

    As a plain subquery it may run for each row of what it restricts, and finds others each time.
    """
    return select(query.cte())
