"""Queries for an overview of the jobs of a project. Each reads a bounded number of rows, however many jobs there are.

Takes a session, never commits.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, Select, exists, func, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from domain.db.sql import first_id_of
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import of_project

#: Maximum number that is counted.
MAX_COUNTED: Final = 10_000
#: The statuses that the index of notable jobs has, and those of jobs that ended in the last day.
_NOTABLE: Final = (JobStatus.PARTIAL, JobStatus.FAILED, JobStatus.CANCELLED)
_DAY: Final = timedelta(days=1)


class Count(NamedTuple):
    """A number, and whether there may be more."""

    number: int
    more: bool


class OverviewRepository:
    """The jobs of a project, within one transaction."""

    def __init__(self, session: AsyncSession, project_id: UUID) -> None:
        self._session = session
        self._project_id = project_id

    async def running(self, limit: int) -> Sequence[Job]:
        """Read the running jobs, children too, newest first."""
        query = self._jobs(_has(JobStatus.RUNNING)).options(defer(Job.params))
        return (await self._session.scalars(query.order_by(Job.id.desc()).limit(limit))).all()

    async def waiting(self) -> tuple[Count, float | None]:
        """Count the due queued jobs, and return for how many seconds the oldest of them has been due."""
        undispatched = self._due(Job.dispatched_at.is_(None), Job.run_at)
        dispatched = self._due(Job.dispatched_at.is_not(None), Job.dispatched_at)
        due = union_all(undispatched, dispatched).subquery()
        age = func.extract("epoch", func.now() - func.min(due.c.run_at))
        number, seconds = (await self._session.execute(select(func.count(), age).select_from(due))).one()
        return Count(number, more=number >= MAX_COUNTED), max(0.0, float(seconds)) if number else None

    async def accepted_today(self) -> Mapping[JobStatus, Count]:
        """Count the jobs that were accepted in the last 24 hours, by how they ended.

        Those that have succeeded are counted among the newest `MAX_COUNTED` of all, as no index has them.
        """
        newest = self._ids(self._is_recent()).add_columns(Job.status).order_by(Job.id.desc())
        rows = newest.limit(MAX_COUNTED).subquery()
        succeeded = select(func.count()).where(rows.c.status == JobStatus.SUCCEEDED).scalar_subquery()
        all_of_them = select(func.count()).select_from(rows).scalar_subquery()
        others = [self._number(_has(status), self._is_recent()) for status in _NOTABLE]
        number, total, *numbers = (await self._session.execute(select(succeeded, all_of_them, *others))).one()
        counts = [Count(number, more=total == MAX_COUNTED), *(Count(one, more=one == MAX_COUNTED) for one in numbers)]
        return dict(zip((JobStatus.SUCCEEDED, *_NOTABLE), counts, strict=True))

    async def failed_today(self, limit: int) -> Sequence[Job]:
        """Read the newest jobs of the last 24 hours that have failed, in part or whole, and were not retried."""
        retry = aliased(Job)
        failed = or_(_has(JobStatus.FAILED), _has(JobStatus.PARTIAL))
        query = self._jobs(failed, self._is_recent(), Job.parent_id.is_(None)).options(defer(Job.params))
        query = query.where(~exists().where(retry.retry_of == Job.id))
        return (await self._session.scalars(query.order_by(Job.id.desc()).limit(limit))).all()

    def _jobs(self, *conditions: ColumnElement[bool]) -> Select[Job]:
        return select(Job).where(*conditions, *self._visible())

    def _ids(self, *conditions: ColumnElement[bool]) -> Select[UUID]:
        return select(Job.id).where(*conditions, Job.parent_id.is_(None), *self._visible())

    def _number(self, *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
        rows = self._ids(*conditions).limit(MAX_COUNTED).subquery()
        return select(func.count()).select_from(rows).scalar_subquery()

    def _due(self, condition: ColumnElement[bool], order: Any) -> Select[datetime]:
        due = (_has(JobStatus.QUEUED)) & (Job.run_at <= func.now())
        query = select(Job.run_at).where(due, condition, Job.parent_id.is_(None), *self._visible())
        return select(query.order_by(order).limit(MAX_COUNTED).subquery().c.run_at)

    def _visible(self) -> Iterable[ColumnElement[bool]]:
        yield Job.pruned_at.is_(None)
        yield from of_project(self._project_id)

    @staticmethod
    def _is_recent() -> ColumnElement[bool]:
        return Job.id > first_id_of(datetime.now(UTC) - _DAY)


def _has(status: JobStatus) -> ColumnElement[bool]:
    """Return the condition, with the status as a constant: PostgreSQL must know it to use the partial indexes."""
    return Job.status == literal(status.value, literal_execute=True)
