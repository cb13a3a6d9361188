"""The table of samples."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base


class VolumeSample(Base):
    """The size and the used bytes of a volume in an hour."""

    __tablename__ = "volume_samples"
    # Rows are added in the order of time, so that a BRIN index finds the old ones, and is very small.
    __table_args__ = (Index("volume_samples_at_idx", "at", postgresql_using="brin"),)

    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: The beginning of the hour, in UTC.
    at: Mapped[datetime] = mapped_column(primary_key=True)
    size: Mapped[int]
    #: None if they were not measured.
    used: Mapped[int | None]


class Sample(NamedTuple):
    """The size and the used bytes of a volume at a time."""

    at: datetime
    size: int
    used: int | None
