"""The table of projects, and their limits."""

from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Boolean, CheckConstraint, func, literal_column
from sqlalchemy.orm import Mapped, column_property, mapped_column

from domain.db.base import Entity

MAX_NAME: Final = 64
#: The columns with the limits of a project; null: no limit.
LIMITS: Final = ("max_volumes", "max_bytes", "max_snapshots", "max_queued_jobs")
#: The condition that a project has limits, in SQL.
IS_LIMITED: Final = f"num_nonnulls({', '.join(LIMITS)}) > 0"


class ProjectRef(NamedTuple):
    """A project as a request knows it, as of some seconds ago."""

    id: UUID
    name: str
    is_limited: bool


class Project(Entity):
    """One project. What is in it is invisible to the keys of other projects."""

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint(f"length(name) BETWEEN 1 AND {MAX_NAME}", name="name"),
        CheckConstraint(f"least({', '.join(LIMITS)}) >= 0", name="limits"),
    )

    name: Mapped[str] = mapped_column(unique=True)
    max_volumes: Mapped[int | None]
    #: Of the sizes of its volumes, with what running jobs may add to them.
    max_bytes: Mapped[int | None]
    max_snapshots: Mapped[int | None]
    #: Of jobs that no worker has started, without the lanes of bulk jobs.
    max_queued_jobs: Mapped[int | None]
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    is_limited: Mapped[bool] = column_property(literal_column(IS_LIMITED, Boolean()))
