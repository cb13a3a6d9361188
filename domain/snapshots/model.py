"""The table of snapshots."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Owned, enum_text
from domain.operations import SnapshotState
from domain.volumes.model import MAX_NAME

_STATES = ", ".join(f"'{state}'" for state in SnapshotState)


class Snapshot(Owned):
    """One snapshot, in the project of its volume, which cannot be deleted while it exists."""

    __tablename__ = "snapshots"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint("size > 0", name="size"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint(f"length(name) BETWEEN 1 AND {MAX_NAME}", name="name"),
        UniqueConstraint("volume_id", "name"),
        Index("snapshots_project_id_id_idx", "project_id", "id"),
    )

    volume_id: Mapped[UUID] = mapped_column(ForeignKey("volumes.id", ondelete="RESTRICT"))
    name: Mapped[str]
    state: Mapped[SnapshotState] = mapped_column(enum_text(SnapshotState))
    #: The volume's size in bytes when the snapshot was taken.
    size: Mapped[int]
    #: Incremented when an operation is accepted and when it ends; the upper half of the fence.
    version: Mapped[int]
    #: The job that holds the snapshot, one of them if several clone it; None while it is idle.
    job_id: Mapped[UUID | None]
    #: The schedule that took the snapshot, and whose retention rule may delete it.
    schedule_id: Mapped[UUID | None]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default=text("'{}'"))
    #: What the bytes are worth (`Consistency`); None while that is unknown.
    consistency: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
