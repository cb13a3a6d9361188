"""The job table for user requests and use cases. Takes a session, never commits."""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, bindparam, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY, distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from domain.db.base import DEFAULT_PROJECT, find_owned, in_project
from domain.db.listing import load_short
from domain.db.sql import as_rows, first_id_of
from domain.errors import JobNotFound
from domain.id_prefix import begins_with
from domain.jobs.model import Job, has_status
from domain.jobs.states import ENDED, LIVE, RETRYABLE, JobStatus
from domain.jobs.store import statements
from domain.storage.context import Fence

#: By ``ids``, without jobs that are being pruned.
_GET_MANY: Final = select(Job).where(Job.id == func.any(bindparam("ids", type_=ARRAY(Uuid()))), Job.pruned_at.is_(None))


@dataclass(frozen=True)
class JobFilter:
    """The filters of a list of jobs; None matches any. Children are listed only by their ``parent_id``."""

    status: JobStatus | None = None
    kind: str | None = None
    volume_id: UUID | None = None
    parent_id: UUID | None = None
    created_by: str | None = None
    schedule_id: UUID | None = None
    id_prefix: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class Change(enum.StrEnum):
    """What users do with a job."""

    CANCEL = "cancel"
    RETRY = "retry"


class JobRepository:
    """The job table, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, job: Job) -> Job:
        """Insert a new job; the caller must dispatch it after the commit."""
        self._session.add(job)
        await self._session.flush()
        return job

    async def add_undispatched(self, jobs: Sequence[Job]) -> None:
        """Insert new jobs and leave their dispatch to a maintenance task."""
        await self._session.execute(statements.ADD_UNDISPATCHED, {"rows": as_rows(jobs)})

    async def get(self, job_id: UUID) -> Job | None:
        """Read one job."""
        return _visible(await self._session.get(Job, job_id))

    async def get_for_update(self, job_id: UUID) -> Job | None:
        """Read one job and lock its row."""
        return _visible(await self._session.get(Job, job_id, with_for_update=True, populate_existing=True))

    async def lock(self, job_id: UUID, project_id: UUID) -> Job:
        """Read one job of a project and lock its row.

        Raises:
            JobNotFound: no such job.
        """
        job = await find_owned(self._session, Job, job_id, project_id, for_update=True)
        return require_job(_visible(job), job_id, project_id)

    async def raise_fences(self, stored: Mapping[UUID, Fence]) -> None:
        """Raise the fences of queued jobs, which the caller has locked, above those that the storage has."""
        for job_id, fence in stored.items():
            raised = func.jsonb_build_object("fence_version", fence.version + 1)
            query = update(Job).where(Job.id == job_id)
            # The epoch, too: an attempt whose epoch the database has lost must not be taken for a later one.
            values = {"params": Job.params.op("||")(raised), "epoch": func.greatest(Job.epoch, fence.epoch + 1)}
            await self._session.execute(query.values(values).execution_options(synchronize_session=False))

    async def cancel_next_attempt(self, job_id: UUID, error: dict[str, Any]) -> None:
        """Let the next attempt at a queued job only seal what it holds, and end the job with this ``error``."""
        cancelled = func.coalesce(Job.cancel_requested_at, func.now())
        query = update(Job).where(Job.id == job_id).values(cancel_requested_at=cancelled, error=error)
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def nth_newest(self, number: int, project_id: UUID, *, before: UUID | None) -> UUID | None:
        """Return the id of the job of a project before which there are ``number`` newer ones; None if there is none."""
        query = select(Job.id).where(*of_project(project_id)).order_by(Job.id.desc()).offset(number).limit(1)
        if before is not None:
            query = query.where(Job.id < before)
        return await self._session.scalar(query)

    async def page(
        self, filters: JobFilter, project_id: UUID, *, before: UUID | None, limit: int, down_to: UUID | None = None
    ) -> Sequence[Job]:
        """Read up to ``limit + 1`` jobs of a project, newest first down to ``down_to``, without long params."""
        query = select(Job).options(defer(Job.params)).order_by(Job.id.desc()).limit(limit + 1)
        if down_to is not None:
            query = query.where(Job.id >= down_to)
        if before is not None:
            query = query.where(Job.id < before)
        jobs = (await self._session.scalars(query.where(*_matches(filters), *of_project(project_id)))).all()
        await load_short(self._session, Job.params, jobs)
        return jobs

    async def ids_for(
        self, change: Change, filters: JobFilter, project_id: UUID, *, before: UUID | None = None, limit: int
    ) -> Sequence[UUID]:
        """Return the ids of matching jobs of a project that can be changed so, newest first."""
        statuses = RETRYABLE if change is Change.RETRY else LIVE
        listed = [literal(status.value, literal_execute=True) for status in sorted(statuses)]
        query = select(Job.id).where(*_matches(filters), *of_project(project_id), Job.status.in_(listed))
        if change is Change.RETRY:
            retry = aliased(Job)
            query = query.where(~exists().where(retry.retry_of == Job.id))
        else:
            query = query.where(Job.cancel_requested_at.is_(None))
        if before is not None:
            query = query.where(Job.id < before)
        return (await self._session.scalars(query.order_by(Job.id.desc()).limit(limit))).all()

    async def ended_among(self, job_ids: Collection[UUID]) -> Sequence[UUID]:
        """Return the jobs among these that have ended or are gone."""
        query = select(Job.id).where(Job.id.in_(job_ids), Job.status.not_in(ENDED))
        live = set((await self._session.scalars(query)).all())
        return [job_id for job_id in job_ids if job_id not in live]

    async def get_many(self, job_ids: Collection[UUID]) -> Sequence[Job]:
        """Read the jobs among these that exist."""
        return (await self._session.scalars(_GET_MANY, {"ids": list(job_ids)})).all()

    async def versions(self, job_ids: Collection[UUID]) -> dict[UUID, int]:
        """Return the version of each of these jobs that exists."""
        query = select(Job.id, Job.version).where(Job.id.in_(job_ids), Job.pruned_at.is_(None))
        return {row.id: row.version for row in await self._session.execute(query)}

    async def last_failures(self, volume_ids: Collection[UUID], project_id: UUID) -> Mapping[UUID, Job]:
        """Return the newest job of each of these volumes that failed, was cancelled or succeeded in part."""
        query = (
            select(Job)
            .options(defer(Job.params))
            .where(Job.volume_id.in_(volume_ids), Job.status.in_(RETRYABLE), *of_project(project_id))
            .ext(distinct_on(Job.volume_id))
            .order_by(Job.volume_id, Job.id.desc())
        )
        return {job.volume_id: job for job in await self._session.scalars(query) if job.volume_id is not None}

    async def retried_by(self, job_id: UUID) -> UUID | None:
        """Return the id of the job that retries this one, if any."""
        return await self._session.scalar(select(Job.id).where(Job.retry_of == job_id))


def require_job(job: Job | None, job_id: UUID, project_id: UUID) -> Job:
    """Return the job, which must be in the project.

    Raises:
        JobNotFound: it is not, or there is none.
    """
    if (job := in_project(job, project_id)) is None:
        raise JobNotFound(job_id)
    return job


def of_project(project_id: UUID) -> Iterable[ColumnElement[bool]]:
    """Yield the conditions for the jobs of a project."""
    yield Job.project_id == project_id
    if project_id != DEFAULT_PROJECT:
        yield Job.project_id != DEFAULT_PROJECT  # the condition of the index; PostgreSQL does not conclude it


def _visible(job: Job | None) -> Job | None:
    """Return None for a job that is being pruned."""
    return None if job is None or job.pruned_at is not None else job


def _matches(filters: JobFilter) -> Iterable[ColumnElement[bool]]:
    if filters.status is not None:
        yield has_status(filters.status)
    columns = {
        Job.kind: filters.kind,
        Job.volume_id: filters.volume_id,
        Job.created_by: filters.created_by,
        Job.schedule_id: filters.schedule_id,
    }
    yield from (column == value for column, value in columns.items() if value is not None)
    if filters.id_prefix is not None:
        yield begins_with(Job.id, filters.id_prefix)
    if filters.created_after is not None:
        yield Job.id >= first_id_of(filters.created_after)
    if filters.created_before is not None:
        yield Job.id < first_id_of(filters.created_before)
    yield Job.pruned_at.is_(None)
    yield Job.parent_id.is_(None) if filters.parent_id is None else Job.parent_id == filters.parent_id
