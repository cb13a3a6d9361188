"""Queries for an overview of the jobs of a project. Each reads a bounded number of rows, however many jobs there are.

Takes a session, never commits.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, Select, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from domain.db.sql import first_id_of
from domain.jobs.model import Job, has_status
from domain.jobs.states import JobStatus
from domain.jobs.stats import MAX_COUNTED, waiting_query
from domain.jobs.store.jobs import of_project

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
        query = self._jobs(has_status(JobStatus.RUNNING)).options(defer(Job.params))
        return (await self._session.scalars(query.order_by(Job.id.desc()).limit(limit))).all()

    async def waiting(self) -> tuple[Count, float | None]:
        """Count the due queued jobs, and return for how many seconds the oldest of them has been due."""
        query = waiting_query(Job.parent_id.is_(None), *self._visible())
        number, seconds = (await self._session.execute(query)).one()
        return Count(number, more=number >= MAX_COUNTED), None if seconds is None else max(0.0, float(seconds))

    async def accepted_today(self) -> Mapping[JobStatus, Count]:
        """Count the jobs that were accepted in the last 24 hours, by how they ended.

        Those that have succeeded are counted among the newest `MAX_COUNTED` of all, as no index has them.
        """
        newest = self._ids(self._is_recent()).add_columns(Job.status).order_by(Job.id.desc())
        rows = newest.limit(MAX_COUNTED).subquery()
        succeeded = select(func.count()).where(rows.c.status == JobStatus.SUCCEEDED).scalar_subquery()
        all_of_them = select(func.count()).select_from(rows).scalar_subquery()
        others = [self._number(has_status(status), self._is_recent()) for status in _NOTABLE]
        number, total, *numbers = (await self._session.execute(select(succeeded, all_of_them, *others))).one()
        counts = [Count(number, more=total == MAX_COUNTED), *(Count(one, more=one == MAX_COUNTED) for one in numbers)]
        return dict(zip((JobStatus.SUCCEEDED, *_NOTABLE), counts, strict=True))

    async def failed_today(self, limit: int) -> Sequence[Job]:
        """Read the newest jobs of the last 24 hours that have failed, in part or whole, and were not retried."""
        retry = aliased(Job)
        failed = or_(has_status(JobStatus.FAILED), has_status(JobStatus.PARTIAL))
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

    def _visible(self) -> Iterable[ColumnElement[bool]]:
        yield Job.pruned_at.is_(None)
        yield from of_project(self._project_id)

    @staticmethod
    def _is_recent() -> ColumnElement[bool]:
        return Job.id > first_id_of(datetime.now(UTC) - _DAY)
