"""The ledger: what a bulk job decided for each volume, and the result; statuses, codes, and the row as plain tuples."""

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base, enum_text
from domain.jobs.attempt import ClaimedJob


class ItemStatus(enum.StrEnum):
    """The status of one volume in one bulk job."""

    PENDING = "pending"
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"


MOVES: Final[dict[ItemStatus, frozenset[ItemStatus]]] = {
    ItemStatus.PENDING: frozenset({ItemStatus.CLAIMED, ItemStatus.SKIPPED, ItemStatus.FAILED}),
    ItemStatus.CLAIMED: frozenset({ItemStatus.PENDING, ItemStatus.SUCCEEDED, ItemStatus.SKIPPED, ItemStatus.FAILED}),
    ItemStatus.SUCCEEDED: frozenset(),
    ItemStatus.SKIPPED: frozenset(),
    ItemStatus.FAILED: frozenset(),
}

FINISHED: Final = frozenset(status for status, moves in MOVES.items() if not moves)


class ItemCode(enum.StrEnum):
    """The reason for an item's status; a failed item may also have the code of a storage error."""

    EXPANDED = "expanded"
    SNAPSHOTTED = "snapshotted"
    VOLUME_BUSY = "volume-busy"
    VOLUME_GONE = "volume-gone"
    VOLUME_UNUSABLE = "volume-unusable"
    BELOW_THRESHOLD = "below-threshold"
    USAGE_UNKNOWN = "usage-unknown"
    AT_LIMIT = "at-limit"
    COOLING_DOWN = "cooling-down"
    NO_POLICY = "no-policy"
    POLICY_UNUSABLE = "policy-unusable"
    ALREADY_LARGE_ENOUGH = "already-large-enough"
    NAME_TAKEN = "name-taken"
    QUOTA_EXCEEDED = "quota-exceeded"
    CANCELLED = "cancelled"
    LANES_LOST = "lanes-lost"


_STATUSES = ", ".join(f"'{status}'" for status in ItemStatus)


class Item(Base):
    """One volume in one bulk job. Sizes are in bytes. The row outlives the volume."""

    __tablename__ = "job_items"
    __table_args__ = (
        CheckConstraint(f"status IN ({_STATUSES})", name="status"),
        CheckConstraint("status <> 'claimed' OR (lane_id IS NOT NULL AND epoch IS NOT NULL)", name="claimed"),
        CheckConstraint("status NOT IN ('skipped', 'failed') OR code IS NOT NULL", name="code"),
        CheckConstraint("to_size IS NULL OR from_size IS NULL OR to_size >= from_size", name="growth"),
        Index(
            "job_items_waiting", "job_id", "backend", "due_at", "volume_id", postgresql_where=text("status = 'pending'")
        ),
        Index("job_items_claimed", "job_id", "lane_id", postgresql_where=text("status = 'claimed'")),
        Index("job_items_failed", "job_id", "volume_id", postgresql_where=text("status = 'failed'")),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: The backend of its volume, whose lanes work on it; empty if there is no such volume: any lane can say so.
    backend: Mapped[str] = mapped_column(server_default="")
    status: Mapped[ItemStatus] = mapped_column(enum_text(ItemStatus))
    #: The lane that claimed the item and the lane's epoch then. A lane records only items that still carry both.
    lane_id: Mapped[UUID | None]
    epoch: Mapped[int | None]
    from_size: Mapped[int | None]
    #: Stored under the volume's lock before any storage work, which makes the work idempotent.
    to_size: Mapped[int | None]
    #: Bytes in use as measured by this job; None if it did not need to know, or could not.
    used: Mapped[int | None]
    #: The snapshot of this item; its row may have been deleted since.
    snapshot_id: Mapped[UUID | None]
    code: Mapped[str | None]
    detail: Mapped[str | None]
    busy_since: Mapped[datetime | None]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ItemRef(NamedTuple):
    """The columns of an item that lanes need. A plain tuple: a bulk job may have a million items."""

    volume_id: UUID
    status: ItemStatus
    to_size: int | None = None
    snapshot_id: UUID | None = None


class ItemUpdate(NamedTuple):
    """A decision about an item, or its result. CLAIMED: to be worked on; PENDING: busy, to be retried later."""

    volume_id: UUID
    status: ItemStatus
    code: str | None = None
    detail: str | None = None
    from_size: int | None = None
    to_size: int | None = None
    used: int | None = None
    snapshot_id: UUID | None = None


class Lane(NamedTuple):
    """One attempt at a lane, the job ``job_id`` of the bulk job ``parent_id``; ``params`` has what it needs of that."""

    parent_id: UUID
    job_id: UUID
    project_id: UUID
    epoch: int
    worker_id: UUID | None
    params: Mapping[str, Any]
    created_by: str | None = None

    @classmethod
    def from_job(cls, job: ClaimedJob) -> Self:
        """Build the lane from its claimed job."""
        if job.parent_id is None:
            raise RuntimeError(f"{job.kind} {job.id} has no parent")
        return cls(job.parent_id, job.id, job.project_id, job.epoch, job.worker_id, job.params, job.created_by)

    @property
    def slots(self) -> int:
        """Maximum number of volumes that the lane works on at once."""
        slots: int = self.params["slots"]
        return slots

    @property
    def lanes(self) -> int | None:
        """Number of lanes added together with this one; None if an early version, which did not store it, added it."""
        return self.params.get("lanes")

    @property
    def backend(self) -> str:
        """The backend whose items the lane works on; empty: those whose volumes are gone."""
        backend: str = self.params.get("backend", "")
        return backend

    @property
    def is_limited(self) -> bool:
        """Whether the project had limits when the lane was added."""
        return bool(self.params.get("limited"))

    @property
    def is_last(self) -> bool:
        """Whether too many lanes failed before this one, so that it only seals and fails what they left."""
        return bool(self.params["last"])
