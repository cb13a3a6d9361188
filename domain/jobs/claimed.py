"""A claimed job, as passed to the code that performs it."""

from datetime import datetime
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from domain.jobs.model import Job, JobMessage


class ClaimedJob(NamedTuple):
    """The columns of a job that its handler needs, as its claim left them: ``attempt`` counts this one.

    A plain tuple: a worker gets thousands of them per second, and SQLAlchemy would track each mapped object.
    """

    id: UUID
    kind: str
    params: dict[str, Any]
    volume_id: UUID | None
    snapshot_id: UUID | None
    backend: str | None
    parent_id: UUID | None
    retry_of: UUID | None
    created_by: str | None
    attempt: int
    max_attempts: int
    epoch: int
    worker_id: UUID | None
    cancel_requested_at: datetime | None
    error: dict[str, Any] | None
    #: Milliseconds from `run_at` to the claim, by PostgreSQL's clock. No column: 0 unless the job was really claimed.
    queue_ms: int = 0

    @classmethod
    def from_row(cls, job: Job) -> Self:
        """Convert a loaded row."""
        return cls(*(getattr(job, name) for name in CLAIMED_COLUMNS))

    @property
    def message(self) -> JobMessage:
        """The message that it was claimed with."""
        return JobMessage(self.id, self.epoch)

    @property
    def fence(self) -> tuple[int, int]:
        """The fence (version, epoch), which orders this attempt among all attempts at the same volume or snapshot."""
        return self.params["fence_version"], self.epoch


#: The fields of `ClaimedJob` that are columns of the job.
CLAIMED_COLUMNS: Final = ClaimedJob._fields[:-1]
