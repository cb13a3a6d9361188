"""The work order of a job: what is handed to whoever carries it out."""

from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from domain.jobs.model import Dispatch, Job


class ClaimedJob(NamedTuple):
    """What the work, its record and the way out must know of a job: its row, as it was when it was claimed.

    A plain tuple, for a worker gets thousands of them a second, and SQLAlchemy would keep books about each.
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

    @classmethod
    def from_row(cls, job: Job) -> Self:
        """Draw up the order of a job whose row is at hand."""
        return cls(*(getattr(job, name) for name in cls._fields))

    @property
    def dispatch(self) -> Dispatch:
        """What the message carried that it was claimed with."""
        return Dispatch(self.id, self.epoch)

    @property
    def fence(self) -> tuple[int, int]:
        """The order of this attempt among all that ever touched the same thing: its version, then the ring."""
        return self.params["fence"], self.epoch
