"""What PostgreSQL alone can tell of jobs and ledgers, each by one statement. Takes a session, never commits.

One statement sees one moment: whatever it finds was so, however much is in motion.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, literal, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.expansion.model import Item
from domain.expansion.service import BULK
from domain.expansion.states import ItemStatus
from domain.inspection.rows import CLONE
from domain.jobs.model import Job
from domain.jobs.states import ENDED, LIVE, JobStatus
from domain.snapshots.model import Snapshot
from domain.snapshots.states import SnapshotState
from domain.volumes.model import Volume

#: Counting a million items takes some seconds.
_COUNT_SECONDS: Final = 50


class JobState(NamedTuple):
    """What is wrong with one live job, if anything; ``silent``: for how many seconds its lease has been over."""

    id: UUID
    kind: str
    status: JobStatus
    version: int
    leased: bool
    in_hand: bool
    silent: float
    forsaken: bool


class Account(NamedTuple):
    """A bulk job's own counters, and what its ledger says; None before they are first counted."""

    status: JobStatus
    counters: tuple[int | None, ...]
    ledger: tuple[int, ...]
    unfinished: int

    @property
    def agrees(self) -> bool:
        """Whether they are the same; a ledger that was pruned says nothing any more."""
        pruned = self.status in ENDED and self.ledger[0] == 0
        return pruned or self.counters == self.ledger

    @property
    def due(self) -> bool:
        """Whether they should be the same: a plan that is being made is not counted yet."""
        return self.status in ENDED or self.counters[0] is not None


class Books:
    """Jobs and ledgers, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def live(self, after: UUID | None, limit: int, *, patience: float) -> Sequence[JobState]:
        """Read live jobs upwards by id. ``patience`` in seconds: how long a whole may be without lanes."""
        query = (
            select(
                *(Job.id, Job.kind, Job.status, Job.version),
                func.coalesce(Job.lease_expires_at > func.now(), literal(value=False)),
                and_(_has_volume(), _has_snapshot()),
                func.coalesce(func.extract("epoch", func.now() - Job.lease_expires_at), 0.0),
                _forsaken(patience),
            )
            .outerjoin(Volume, Volume.id == Job.volume_id)
            .outerjoin(Snapshot, Snapshot.id == Job.snapshot_id)
            .where(Job.status.in_(LIVE))
            .order_by(Job.id)
            .limit(limit)
        )
        query = query if after is None else query.where(Job.id > after)
        return [JobState(*row) for row in await self._session.execute(query)]

    async def bulks(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List jobs that have a ledger, upwards by id; one that is being forgotten has none of it to agree with."""
        query = select(Job.id).where(Job.kind == BULK, Job.pruned_at.is_(None)).order_by(Job.id).limit(limit)
        return (await self._session.scalars(query if after is None else query.where(Job.id > after))).all()

    async def account(self, job_id: UUID) -> Account | None:
        """Compare a bulk job's counters with its ledger; None if it has just been pruned."""
        await self._session.execute(text(f"SET LOCAL statement_timeout = '{_COUNT_SECONDS}s'"))
        ledger = (func.count(Item.volume_id), *map(_count, (ItemStatus.SUCCEEDED, ItemStatus.FAILED)))
        ledger += (_count(ItemStatus.SKIPPED), _count(ItemStatus.PENDING, ItemStatus.CLAIMED))
        counters = (Job.total, Job.succeeded, Job.failed, Job.skipped)
        query = select(Job.status, *counters, *ledger).outerjoin(Item, Item.job_id == Job.id)
        row = (await self._session.execute(query.where(Job.id == job_id).group_by(Job.id))).one_or_none()
        return None if row is None else Account(row[0], tuple(row[1:5]), tuple(row[5:9]), row[9])


def _count(*statuses: ItemStatus) -> ColumnElement[int]:
    return func.count(Item.volume_id).filter(Item.status.in_(statuses))


def _has_volume() -> ColumnElement[bool]:
    return or_(Job.volume_id.is_(None), func.coalesce(Volume.job_id == Job.id, literal(value=False)))


def _has_snapshot() -> ColumnElement[bool]:
    """Whether a job has its snapshot; those that clone share it."""
    shared: Any = and_(Job.kind == CLONE, Snapshot.state == SnapshotState.CLONING)
    own = func.coalesce(or_(Snapshot.job_id == Job.id, shared), literal(value=False))
    return or_(Job.snapshot_id.is_(None), own)


def _forsaken(patience: float) -> ColumnElement[bool]:
    """Whether a job was handed over to lanes of which none is left, and nobody has given it new ones for so long."""
    lane = aliased(Job)
    lanes = select(func.max(lane.finished_at)).where(lane.parent_id == Job.id).correlate(Job).scalar_subquery()
    since = func.coalesce(lanes, Job.started_at)
    living = exists().where(lane.parent_id == Job.id, lane.status.in_(LIVE)).correlate(Job)
    handed_over = and_(Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_(None))
    return and_(handed_over, ~living, since < func.now() - literal(timedelta(seconds=patience)))
