"""What users and use cases ask of the job table, by name. Takes a session, never commits."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, Uuid, bindparam, func, insert, null, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import json_value
from domain.jobs.model import Job
from domain.jobs.states import ENDED, JobStatus

#: What is known of a job before PostgreSQL has filled in the rest.
_WRITTEN_COLUMNS: Final = (
    *("id", "kind", "params", "status", "version", "attempt", "epoch", "max_attempts"),
    *("volume_id", "snapshot_id", "backend", "created_by"),
)

_ADD: Final = (
    text(f"""
        INSERT INTO jobs ({", ".join(_WRITTEN_COLUMNS)})
        SELECT {", ".join(_WRITTEN_COLUMNS)} FROM jsonb_to_recordset(:jobs) AS new
            (id uuid, kind text, params jsonb, status text, version bigint, attempt bigint, epoch bigint,
             max_attempts bigint, volume_id uuid, snapshot_id uuid, backend text, created_by text)
        RETURNING created_at
    """)  # noqa: S608 (words of our own)
    .bindparams(bindparam("jobs", type_=JSONB()))
    .columns(created_at=DateTime(timezone=True))
)
#: By ``ids``, and without what is being pruned.
_GET_MANY: Final = select(Job).where(Job.id == func.any(bindparam("ids", type_=ARRAY(Uuid()))), Job.pruned_at.is_(None))


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list shows; None means any. Children only show when their parent is named."""

    status: JobStatus | None = None
    kind: str | None = None
    volume_id: UUID | None = None
    parent_id: UUID | None = None


class JobRepository:
    """The job table, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, job: Job) -> Job:
        """Write a new job; its message follows the commit."""
        self._session.add(job)
        await self._session.flush()
        return job

    async def add_many(self, jobs: Sequence[Job]) -> None:
        """Write many new jobs; their messages follow the commit."""
        rows = [{name: json_value(getattr(job, name)) for name in _WRITTEN_COLUMNS} for job in jobs]
        now = (await self._session.scalars(_ADD, {"jobs": rows})).all()[0]  # the same for all of a transaction
        for job in jobs:
            job.created_at = job.run_at = job.dispatched_at = now

    async def add_undispatched(self, jobs: Sequence[Job]) -> None:
        """Write many new jobs of which nobody has been told: housekeeping rings them."""
        rows = [{name: getattr(job, name) for name in _WRITTEN_COLUMNS} for job in jobs]
        await self._session.execute(insert(Job).values(dispatched_at=null()), rows)

    async def get(self, job_id: UUID) -> Job | None:
        """Read one job."""
        return _visible(await self._session.get(Job, job_id))

    async def get_for_update(self, job_id: UUID) -> Job | None:
        """Read one job and keep others from changing it."""
        return _visible(await self._session.get(Job, job_id, with_for_update=True, populate_existing=True))

    async def page(self, filters: JobFilter, *, before: UUID | None, limit: int) -> Sequence[Job]:
        """Read ``limit`` jobs and one more, newest first."""
        query = select(Job).order_by(Job.id.desc()).limit(limit + 1).where(*_matches(filters))
        if before is not None:
            query = query.where(Job.id < before)
        return (await self._session.scalars(query)).all()

    async def ended_among(self, job_ids: Collection[UUID]) -> Sequence[UUID]:
        """Tell which of these jobs have ended, or are gone."""
        live = select(Job.id).where(Job.id.in_(job_ids), Job.status.not_in(ENDED))
        still = set((await self._session.scalars(live)).all())
        return [job_id for job_id in job_ids if job_id not in still]

    async def get_many(self, job_ids: Collection[UUID]) -> Sequence[Job]:
        """Read those of these jobs that exist."""
        return (await self._session.scalars(_GET_MANY, {"ids": list(job_ids)})).all()

    async def versions(self, job_ids: Collection[UUID]) -> dict[UUID, int]:
        """Tell which versions those of these jobs have that exist."""
        query = select(Job.id, Job.version).where(Job.id.in_(job_ids), Job.pruned_at.is_(None))
        return {row.id: row.version for row in await self._session.execute(query)}

    async def retried_by(self, job_id: UUID) -> UUID | None:
        """Find the job that is this one's retry."""
        return await self._session.scalar(select(Job.id).where(Job.retry_of == job_id))


def _visible(job: Job | None) -> Job | None:
    """Leave out what is being pruned."""
    return None if job is None or job.pruned_at is not None else job


def _matches(filters: JobFilter) -> Iterable[ColumnElement[bool]]:
    named = {
        Job.status: filters.status,
        Job.kind: filters.kind,
        Job.volume_id: filters.volume_id,
    }
    yield from (attribute == value for attribute, value in named.items() if value is not None)
    yield Job.pruned_at.is_(None)
    yield Job.parent_id.is_(None) if filters.parent_id is None else Job.parent_id == filters.parent_id
