"""The tables of schedules and of their runs."""

import enum
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from domain.db.base import Entity, Owned, enum_text
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.schedules.cron import CronSchedule
from domain.volumes.model import MAX_NAME

#: Default catch-up window of a schedule, in seconds: how late a due time may still be started.
CATCH_UP_SECONDS: Final = 6 * 3600


class RunOutcome(enum.StrEnum):
    """What was done at a due time. There are no moves between outcomes: the row of a run is written once."""

    STARTED = "started"
    MISSED = "missed"
    SKIPPED = "skipped"


_OUTCOMES = ", ".join(f"'{outcome}'" for outcome in RunOutcome)


class Schedule(Owned):
    """An action, requested at every time of a cron expression in a time zone."""

    __tablename__ = "schedules"
    __table_args__ = (
        CheckConstraint(f"length(name) BETWEEN 1 AND {MAX_NAME}", name="name"),
        CheckConstraint("catch_up_seconds >= 0", name="catch_up"),
        CheckConstraint("enabled = (next_run_at IS NOT NULL)", name="next_run"),
        Index("schedules_project_id_name_idx", "project_id", "name", unique=True),
        Index("schedules_due", "next_run_at", postgresql_where=text("next_run_at IS NOT NULL")),
    )

    name: Mapped[str]
    #: The name of the key that has created or changed it last, whose role its runs need. None: it is older than
    #: projects, or came with Cistern.
    owner: Mapped[str | None]
    cron: Mapped[str]
    time_zone: Mapped[str]
    action: Mapped[str]
    #: In the form of the action's request in the HTTP API.
    params: Mapped[dict[str, Any]]
    enabled: Mapped[bool]
    catch_up_seconds: Mapped[int]
    #: The first time that has no run yet; None while the schedule is paused.
    next_run_at: Mapped[datetime | None]
    #: The job of the last run; the next run is started only after it has ended.
    last_job_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @property
    def calendar(self) -> CronSchedule:
        """The times at which it is due.

        Raises:
            Invalid: as `CronSchedule`.
        """
        return CronSchedule(self.cron, self.time_zone)


class Run(Entity):
    """The outcome of one due time of a schedule, or of a span of missed ones."""

    __tablename__ = "schedule_runs"
    __table_args__ = (
        CheckConstraint(f"outcome IN ({_OUTCOMES})", name="outcome"),
        CheckConstraint("(outcome = 'started') = (job_id IS NOT NULL)", name="job"),
        CheckConstraint("count >= 1 AND (count = 1 OR outcome = 'missed')", name="count"),
        CheckConstraint("(count = 1) = (last_scheduled_for = scheduled_for)", name="span"),
        UniqueConstraint("schedule_id", "scheduled_for"),
        Index("schedule_runs_of_schedule", "schedule_id", "id"),
        Index("schedule_runs_created", "created_at"),
    )

    schedule_id: Mapped[UUID] = mapped_column(ForeignKey("schedules.id", ondelete="CASCADE"))
    scheduled_for: Mapped[datetime]
    #: The last time of the span; the same as ``scheduled_for`` for a single time.
    last_scheduled_for: Mapped[datetime]
    count: Mapped[int]
    outcome: Mapped[RunOutcome] = mapped_column(enum_text(RunOutcome))
    #: The reason why it was skipped.
    detail: Mapped[str | None]
    #: Not a foreign key: the run outlives its job, which may be pruned earlier.
    job_id: Mapped[UUID | None] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: The status of its job; None if there is no job, or if it was pruned.
    job_status: Mapped[JobStatus | None] = column_property(
        select(Job.status).where(Job.id == job_id, Job.pruned_at.is_(None)).correlate_except(Job).scalar_subquery()
    )
