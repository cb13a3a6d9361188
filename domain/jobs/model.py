"""The tables of jobs and of the workers that carry them out."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from domain.db.base import Entity, enum_text
from domain.jobs.states import ENDED, LIVE, JobStatus

_STATUSES = ", ".join(f"'{status}'" for status in JobStatus)
_ENDED = ", ".join(f"'{status}'" for status in sorted(ENDED))
_LIVE = ", ".join(f"'{status}'" for status in sorted(LIVE))


class Dispatch(NamedTuple):
    """What a message carries: the job, and the ``number`` of this announcement, counted from 0.

    Only the number that the row has at present may claim it; every earlier message is an old one.
    """

    job_id: UUID
    epoch: int


class Job(Entity):
    """One accepted request, from its acceptance to its end."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({_STATUSES})", name="status"),
        CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_ENDED}))", name="finished"),
        CheckConstraint("lease_expires_at IS NULL OR status = 'running'", name="lease"),
        CheckConstraint("status <> 'running' OR started_at IS NOT NULL", name="started"),
        CheckConstraint("attempt >= 0 AND max_attempts >= 1 AND epoch >= 0", name="counters"),
        CheckConstraint("(schedule_id IS NULL) = (scheduled_for IS NULL)", name="schedule"),
        Index(
            "jobs_scheduled",
            "schedule_id",
            "scheduled_for",
            unique=True,
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        Index("jobs_retry_of", "retry_of", unique=True, postgresql_where=text("retry_of IS NOT NULL")),
        Index(
            "jobs_one_live_per_volume",
            "volume_id",
            unique=True,
            postgresql_where=text(f"status IN ({_LIVE})"),
        ),
        Index("jobs_due", "run_at", postgresql_where=text("status = 'queued' AND dispatched_at IS NULL")),
        Index(
            "jobs_dispatched", "dispatched_at", postgresql_where=text("status = 'queued' AND dispatched_at IS NOT NULL")
        ),
        Index("jobs_leased", "lease_expires_at", postgresql_where=text("lease_expires_at IS NOT NULL")),
        Index("jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("jobs_delegated", "id", postgresql_where=text("status = 'running' AND lease_expires_at IS NULL")),
        Index(
            "jobs_live_of_snapshot",
            "snapshot_id",
            postgresql_where=text(f"snapshot_id IS NOT NULL AND status IN ({_LIVE})"),
        ),
        Index("jobs_of_volume", "volume_id", "id"),
        Index("jobs_notable", "status", "id", postgresql_where=text("status NOT IN ('queued', 'succeeded')")),
        Index("jobs_of_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    )

    kind: Mapped[str]
    status: Mapped[JobStatus] = mapped_column(enum_text(JobStatus))
    #: Raised by every change that a client can see; the ETag of the job.
    version: Mapped[int]
    params: Mapped[dict[str, Any]]
    volume_id: Mapped[UUID | None]
    snapshot_id: Mapped[UUID | None]
    backend: Mapped[str | None]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    retry_of: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    created_by: Mapped[str | None]
    #: How often work was begun and not handed back; at ``max_attempts`` the next failure is final.
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    #: Which message may claim the row, and the lower half of the fence.
    epoch: Mapped[int]
    #: When a message was last known to be on its way; None: none was sent for this ring yet.
    dispatched_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    run_at: Mapped[datetime] = mapped_column(server_default=func.now())
    worker_id: Mapped[UUID | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    total: Mapped[int | None]
    succeeded: Mapped[int | None]
    failed: Mapped[int | None]
    skipped: Mapped[int | None]
    result: Mapped[dict[str, Any] | None]
    #: ``{"code", "detail"}`` of the last failure; on a queued job, why it is tried again.
    error: Mapped[dict[str, Any] | None]
    schedule_id: Mapped[UUID | None]
    scheduled_for: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: Since when the job is gone for whoever asks, although a long ledger is still being deleted.
    pruned_at: Mapped[datetime | None]

    @property
    def dispatch(self) -> Dispatch:
        """What its present message carries."""
        return Dispatch(self.id, self.epoch)

    @property
    def ended(self) -> bool:
        """Whether the job has reached one of its last states."""
        return self.status in ENDED


class Worker(Entity):
    """One live worker process; its heartbeat says that it still is."""

    __tablename__ = "workers"

    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Since when it has been beating without a gap; it rescues nobody before others had time to do so too.
    uninterrupted_since: Mapped[datetime] = mapped_column(server_default=func.now())
    #: How many seconds it needs at most to renew its leases when PostgreSQL was away.
    max_renewal_delay: Mapped[float] = mapped_column(server_default=text("0"))


def new_job(kind: str, params: dict[str, Any], *, max_attempts: int, job_id: UUID | None = None, **columns: Any) -> Job:
    """Make a job that waits for its first claim; PostgreSQL's clock fills in its times.

    ``job_id`` where something was given into the job's hands before it was made.
    """
    return Job(
        id=job_id or uuid7(),
        kind=kind,
        params=params,
        status=JobStatus.QUEUED,
        version=1,
        attempt=0,
        epoch=0,
        max_attempts=max_attempts,
        **columns,
    )


def retry_columns(ended: Job) -> dict[str, Any]:
    """Give the columns of a job that is a retry of another."""
    return {"created_by": ended.created_by, "retry_of": ended.id}
