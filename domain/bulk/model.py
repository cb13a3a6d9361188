"""The ledger: what a bulk job decided for each volume, and the result."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.bulk.states import ItemStatus
from domain.db.base import Base, enum_text

_STATUSES = ", ".join(f"'{status}'" for status in ItemStatus)


class Item(Base):
    """One volume in one bulk job. Sizes are in bytes. The row outlives the volume."""

    __tablename__ = "job_items"
    __table_args__ = (
        CheckConstraint(f"status IN ({_STATUSES})", name="status"),
        CheckConstraint("status <> 'claimed' OR (lane_id IS NOT NULL AND epoch IS NOT NULL)", name="claimed"),
        CheckConstraint("status NOT IN ('skipped', 'failed') OR code IS NOT NULL", name="code"),
        CheckConstraint("to_size IS NULL OR from_size IS NULL OR to_size >= from_size", name="growth"),
        Index("job_items_waiting", "job_id", "due_at", "volume_id", postgresql_where=text("status = 'pending'")),
        Index("job_items_claimed", "job_id", "lane_id", postgresql_where=text("status = 'claimed'")),
        Index("job_items_failed", "job_id", "volume_id", postgresql_where=text("status = 'failed'")),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[ItemStatus] = mapped_column(enum_text(ItemStatus))
    #: The lane that claimed the item and the lane's epoch then. A lane records only items that still carry both.
    lane_id: Mapped[UUID | None]
    epoch: Mapped[int | None]
    from_size: Mapped[int | None]
    #: Stored under the volume's lock before any storage work, which makes the work idempotent.
    to_size: Mapped[int | None]
    used: Mapped[int | None]
    #: The snapshot of this item; its row may have been deleted since.
    snapshot_id: Mapped[UUID | None]
    code: Mapped[str | None]
    detail: Mapped[str | None]
    busy_since: Mapped[datetime | None]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
