"""The tables of jobs and workers."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, ColumnElement, ForeignKey, Index, func, literal, text
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from domain import tracing
from domain.db.base import DEFAULT_PROJECT, Entity, Owned, enum_text
from domain.db.sql import from_now
from domain.jobs.states import ENDED, LIVE, JobStatus

_STATUSES = ", ".join(f"'{status}'" for status in JobStatus)
_ENDED = ", ".join(f"'{status}'" for status in sorted(ENDED))
_LIVE = ", ".join(f"'{status}'" for status in sorted(LIVE))


class JobMessage(NamedTuple):
    """A message: a job, its epoch, counted from 0, and the backend in whose queue it is (None: any worker's).

    A message can claim the job only while the row has the same epoch; messages of earlier epochs are stale.
    ``project_id`` says whose share of the queue it is sent in; it is not known of a message that was received.
    """

    job_id: UUID
    epoch: int
    backend: str | None = None
    project_id: UUID | None = None

    @property
    def key(self) -> tuple[UUID, int]:
        """What identifies it: the job and its epoch."""
        return self.job_id, self.epoch


class Job(Owned):
    """One accepted request, from acceptance to its final status. It is in the project of what it works on."""

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
        # Most jobs of most installations are in the default project, and are found without an index of its own.
        Index("jobs_of_project", "project_id", "id", postgresql_where=text(f"project_id <> '{DEFAULT_PROJECT}'")),
        Index("jobs_notable", "status", "id", postgresql_where=text("status NOT IN ('queued', 'succeeded')")),
        Index("jobs_of_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    )

    kind: Mapped[str]
    status: Mapped[JobStatus] = mapped_column(enum_text(JobStatus))
    #: Incremented by every change that a client can see; the job's ETag.
    version: Mapped[int]
    params: Mapped[dict[str, Any]]
    volume_id: Mapped[UUID | None]
    #: The name that the volume had when the job was accepted: it may be renamed or deleted since.
    volume_name: Mapped[str | None]
    snapshot_id: Mapped[UUID | None]
    backend: Mapped[str | None]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    retry_of: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    created_by: Mapped[str | None]
    #: Number of attempts started and not given back; a failure of attempt ``max_attempts`` is final.
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    #: The epoch that a message must carry to claim the row, and the lower half of the fence.
    epoch: Mapped[int]
    #: When a message of this epoch was last sent, about to be sent, or found in Redis; it may not have arrived.
    #: None: maintenance sends one.
    dispatched_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    run_at: Mapped[datetime] = mapped_column(server_default=func.now())
    worker_id: Mapped[UUID | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    total: Mapped[int | None]
    succeeded: Mapped[int | None]
    failed: Mapped[int | None]
    skipped: Mapped[int | None]
    #: ``{"call", "since", "limit_seconds"}`` of a slow blocking call that the running attempt waits for.
    waiting_for: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    #: ``{"code", "detail"}`` of the last failure; on a queued job, the reason for the retry.
    error: Mapped[dict[str, Any] | None]
    schedule_id: Mapped[UUID | None]
    scheduled_for: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: Since when the job is hidden from all readers, while the rest of a long ledger is still being deleted.
    pruned_at: Mapped[datetime | None]
    #: The context of its trace, if there is one: a W3C traceparent, and after a space perhaps one that it links to.
    traceparent: Mapped[str | None]

    @property
    def message(self) -> JobMessage:
        """The message that can claim it at its current epoch."""
        return JobMessage(self.id, self.epoch, self.backend, self.project_id)

    def request_cancellation(self, *, at_once: bool) -> None:
        """Write down that a user has cancelled the job, whose row is locked; ``at_once``: it has ended by that."""
        self.version += 1
        self.cancel_requested_at = func.now()
        if at_once:
            self.status, self.finished_at = JobStatus.CANCELLED, func.now()

    @property
    def ended(self) -> bool:
        """Whether the job has reached a final status."""
        return self.status in ENDED


class Worker(Entity):
    """One worker process; it is alive while its heartbeat is current."""

    __tablename__ = "workers"

    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Start of the current series of heartbeats without a gap; see `rescue_is_safe`.
    uninterrupted_since: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Maximum number of seconds it needs to renew its leases after an outage of PostgreSQL.
    max_renewal_delay: Mapped[float] = mapped_column(server_default=text("0"))
    #: Maximum number of jobs at once; None for a worker of an earlier version.
    slots: Mapped[int | None]
    #: The node whose attachments it carries out; None for a worker of storage.
    node: Mapped[str | None]


def is_alive(lease: float) -> ColumnElement[bool]:
    """Return the condition that a worker has sent a heartbeat within ``lease`` seconds."""
    return Worker.heartbeat_at > from_now(-lease)


def has_status(status: JobStatus) -> ColumnElement[bool]:
    """Return the condition, with the status as a constant: PostgreSQL must know it to use the partial indexes."""
    return Job.status == literal(status.value, literal_execute=True)


def new_job(
    kind: str,
    params: dict[str, Any],
    *,
    project_id: UUID,
    max_attempts: int,
    job_id: UUID | None = None,
    **columns: Any,
) -> Job:
    """Return a new queued job; PostgreSQL fills in its times.

    Pass ``job_id`` if something was acquired for the job before the job is created.
    """
    job_id = job_id or uuid7()
    if (tracer := tracing.tracer()) is not None:
        own = columns | {"project_id": project_id}
        columns["traceparent"] = tracer.send(kind, tracing.job_attributes("send", kind, job_id, own))
    return Job(
        id=job_id,
        project_id=project_id,
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
    """Return the columns that make a new job the retry of ``ended``."""
    return {"created_by": ended.created_by, "retry_of": ended.id}
