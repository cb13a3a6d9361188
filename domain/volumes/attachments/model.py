"""The tables of attachments and mounts."""

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base, Owned, enum_text
from domain.storage.model import NODE_PREFIX


class AttachmentState(enum.StrEnum):
    """Whether a holder has the volume, or a job is about to change that."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


class Mode(enum.StrEnum):
    """Whether a holder may write."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"


_STATES = ", ".join(f"'{state}'" for state in AttachmentState)
_MODES = ", ".join(f"'{mode}'" for mode in Mode)


class Attachment(Owned):
    """The use of a volume by one holder on a node. All attachments of a volume are on the same node."""

    __tablename__ = "attachments"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint(f"mode IN ({_MODES})", name="mode"),
        UniqueConstraint("volume_id", "node", "holder"),
        Index("attachments_project_id_id_idx", "project_id", "id"),
        Index("attachments_node_idx", "node"),
    )

    volume_id: Mapped[UUID] = mapped_column(ForeignKey("volumes.id", ondelete="RESTRICT"))
    node: Mapped[str]
    #: What the consumer calls itself.
    holder: Mapped[str]
    mode: Mapped[Mode] = mapped_column(enum_text(Mode))
    #: The directory where this holder wants the file system; None: that of the node will do.
    path: Mapped[str | None]
    state: Mapped[AttachmentState] = mapped_column(enum_text(AttachmentState))
    #: The version of the volume that attaching it has raised.
    generation: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())


class FreezeState(enum.StrEnum):
    """How far a node has come with a freeze that a worker has asked for."""

    #: The file system is frozen.
    FROZEN = "frozen"
    #: The worker is done.
    RELEASED = "released"
    #: The node has thawed it, and it was frozen without a gap until the worker was done.
    HELD = "held"
    #: It could not be frozen, or was thawed before the worker was done.
    LOST = "lost"


class Mount(Base):
    """A volume on the node that has it: its loop device, and where its file system is mounted."""

    __tablename__ = "mounts"
    __table_args__ = (Index("mounts_node_idx", "node"),)

    volume_id: Mapped[UUID] = mapped_column(ForeignKey("volumes.id", ondelete="RESTRICT"), primary_key=True)
    node: Mapped[str]
    #: That of the attachment which has mounted it.
    generation: Mapped[int]
    device: Mapped[str | None]
    #: None if the volume has no file system.
    path: Mapped[str | None]
    #: The freeze that a worker has asked for; None if there is none.
    freeze_id: Mapped[UUID | None]
    #: Until when the node may begin with it.
    freeze_until: Mapped[datetime | None]
    #: None until the node has tried.
    freeze_state: Mapped[FreezeState | None] = mapped_column(enum_text(FreezeState))


def queue_of(node: str) -> str:
    """Return the name that the jobs of a node have in place of a backend's; no backend can have it."""
    return NODE_PREFIX + node


@dataclass(frozen=True)
class FilesystemReport:
    """What a node knows of the file system of a volume, in bytes and inodes; None is what it does not know."""

    #: As `df` shows them.
    size: int | None = None
    used: int | None = None
    #: What can still be written.
    available: int | None = None
    inodes: int | None = None
    inodes_used: int | None = None
    #: The size of the volume up to which the file system has grown.
    grown_to: int | None = None
    #: Why it could not be grown.
    error: str | None = None

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read it from the result of a job."""
        return cls(**written)

    def to_json(self) -> dict[str, Any]:
        """Convert it to JSON."""
        return dict(vars(self))
