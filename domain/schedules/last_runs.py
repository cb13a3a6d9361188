"""How the last runs of schedules went, for monitoring."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Select, func, select, true
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.model import Job
from domain.jobs.states import ENDED, JobStatus
from domain.projects.model import Project
from domain.schedules.model import Run, RunOutcome, Schedule

#: Maximum number of schedules that are read, the oldest first: each is a time series.
MAX_SCHEDULES: Final = 1000
#: Number of runs of each schedule that are searched for the last that has ended and the last that succeeded.
_RECENT_RUNS: Final = 20


class LastRun(NamedTuple):
    """The last run of a schedule that has ended."""

    project: str
    schedule: str
    #: Whether it was missed or skipped, or its job did not succeed entirely.
    failed: bool
    #: When the job of the last run that succeeded ended; None if none did.
    succeeded_at: datetime | None


async def read_last_runs(session: AsyncSession) -> Sequence[LastRun]:
    """Read the last runs of the schedules that are not paused and have a run that has ended."""
    return [LastRun(*row) for row in await session.execute(_last_runs())]


def _last_runs() -> Select[str, str, bool, datetime | None]:
    columns = (Schedule.id, Schedule.name, Schedule.project_id)
    schedules = select(*columns).where(Schedule.enabled).order_by(Schedule.id).limit(MAX_SCHEDULES).subquery()
    failed = (Run.outcome != RunOutcome.STARTED) | (Job.status != JobStatus.SUCCEEDED)
    recent = (
        select(Run.id, failed.label("failed"), Job.status, Job.finished_at)
        .outerjoin(Job, Job.id == Run.job_id)
        .where(Run.schedule_id == schedules.c.id)
        .order_by(Run.id.desc())
        .limit(_RECENT_RUNS)
        .lateral()
    )
    # A run without a job has ended; one whose job was pruned has no result.
    ended = recent.c.failed.is_not(None) & (recent.c.status.is_(None) | recent.c.status.in_(ENDED))
    newest_first = func.array_agg(aggregate_order_by(recent.c.failed, recent.c.id.desc())).filter(ended)
    succeeded_at = func.max(recent.c.finished_at).filter(recent.c.status == JobStatus.SUCCEEDED)
    return (
        select(Project.name, schedules.c.name, newest_first[1], succeeded_at)
        .join_from(schedules, Project, Project.id == schedules.c.project_id)
        .join(recent, true())
        .group_by(Project.name, schedules.c.id, schedules.c.name)
        .having(func.count().filter(ended) > 0)
        .order_by(schedules.c.id)
    )
