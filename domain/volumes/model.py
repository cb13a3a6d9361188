"""The table of volumes, and how much one is to grow: to a size, by an amount or by a percentage."""

import math
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Owned, enum_text
from domain.errors import Invalid, ShrinkRefused, SizeLimitExceeded, VolumeBusy, VolumeUnusable
from domain.operations import BUSY, VOLUME_MOVES, VolumeState
from domain.storage.driver import MAX_STORED_SIZE

#: Sizes are whole multiples of it, in bytes: no block device can have another size.
BLOCK_BYTES: Final = 4096
#: A multiple of BLOCK_BYTES, so that rounding never exceeds it.
MAX_SIZE: Final = MAX_STORED_SIZE
MAX_NAME: Final = 128

_STATES = ", ".join(f"'{state}'" for state in VolumeState)
_IDLE = ", ".join(f"'{state}'" for state in sorted(set(VolumeState) - BUSY))


def rounded_up(size: int) -> int:
    """Return the size of the smallest volume that has at least ``size`` bytes."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def rounded_down(limit: int) -> int:
    """Return the size of the largest volume that has at most ``limit`` bytes."""
    return limit // BLOCK_BYTES * BLOCK_BYTES


class Volume(Owned):
    """One volume. Sizes are in bytes."""

    __tablename__ = "volumes"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint(f"(job_id IS NULL) = (state IN ({_IDLE}))", name="job"),
        CheckConstraint(f"size > 0 AND size <= {MAX_SIZE}", name="size"),
        CheckConstraint("used >= 0", name="used"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint(f"length(name) BETWEEN 1 AND {MAX_NAME}", name="name"),
        Index("volumes_project_id_name_idx", "project_id", "name", unique=True),
        Index("volumes_project_id_id_idx", "project_id", "id"),
        Index("volumes_labels", "labels", postgresql_using="gin"),
    )

    name: Mapped[str]
    backend: Mapped[str]
    state: Mapped[VolumeState] = mapped_column(enum_text(VolumeState))
    size: Mapped[int]
    #: Incremented when an operation is accepted and when it ends; the upper half of the fence.
    version: Mapped[int]
    #: The job that holds the volume; None while it is idle.
    job_id: Mapped[UUID | None]
    #: The size that its job may give it, in bytes; None if no job holds it, or the job does not change it.
    growing_to: Mapped[int | None]
    labels: Mapped[dict[str, str]]
    autogrow: Mapped[dict[str, Any] | None]
    #: Bytes in use, measured at ``used_at``; None although it was measured: the backend cannot tell.
    used: Mapped[int | None]
    used_at: Mapped[datetime | None]
    #: None: it has none that Cistern knows of.
    filesystem: Mapped[str | None]
    #: Bytes and inodes of the file system as `df` shows them, as of the node's last report; None if they are unknown.
    filesystem_size: Mapped[int | None]
    filesystem_used: Mapped[int | None]
    inodes: Mapped[int | None]
    inodes_used: Mapped[int | None]
    #: The size of the volume in bytes up to which its file system has grown.
    filesystem_grown_to: Mapped[int | None]
    #: Why the file system could not be grown at the last try.
    filesystem_error: Mapped[str | None]
    #: The snapshot or the volume whose bytes it began with.
    source_snapshot_id: Mapped[UUID | None]
    source_volume_id: Mapped[UUID | None]
    #: When an expansion last made it larger.
    grown_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    def follow(self, source: "Volume") -> int:
        """Make the row of a clone, which is to be made anew, fit its source as it is now.

        Return by how many bytes the clone becomes larger.
        """
        growth = max(source.size - self.size, 0)
        self.size += growth
        self.filesystem_grown_to = source.filesystem_grown_to
        return growth


class VolumeRow(NamedTuple):
    """The columns of a volume that batches need. A plain tuple: a bulk job may read a million of them."""

    id: UUID
    project_id: UUID
    name: str
    backend: str
    state: VolumeState
    size: int
    version: int
    job_id: UUID | None
    autogrow: dict[str, Any] | None
    filesystem: str | None

    def after_acquisition(self, state: VolumeState, job_id: UUID) -> "VolumeRow":
        """Return the row as it will be when ``job_id`` has acquired it; its version goes up by one.

        Raises:
            VolumeBusy, VolumeUnusable: as `require_move`.
        """
        require_move(self, state)
        return self._replace(state=state, job_id=job_id, version=self.version + 1)


def require_move(volume: Volume | VolumeRow, state: VolumeState) -> None:
    """Require that a volume can move to ``state`` now.

    Raises:
        VolumeBusy, VolumeUnusable: it cannot.
    """
    if volume.state in BUSY:
        raise VolumeBusy(job_id=volume.job_id, state=volume.state)
    if state not in VOLUME_MOVES[volume.state]:
        raise VolumeUnusable(state=volume.state)


#: The members of a growth, of which exactly one is given.
GROWTH_MEMBERS: Final = ("to", "by", "percent")


@dataclass(frozen=True)
class Growth:
    """Grow ``to`` a size or ``by`` an amount, both in bytes, or by ``percent`` of the current size."""

    to: int | None = None
    by: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        """Require exactly one member, with a positive finite value."""
        members = {name: getattr(self, name) for name in GROWTH_MEMBERS if getattr(self, name) is not None}
        if len(members) != 1:
            raise Invalid(f"Set exactly one of {', '.join(f'`{name}`' for name in GROWTH_MEMBERS)}.", field="to")
        ((name, value),) = members.items()
        if not 0 < value < math.inf:
            raise Invalid("Growth must be a positive number.", field=name)

    def requested_size(self, size: int) -> int:
        """Return the size requested for a volume of ``size`` bytes, rounded up, whether or not it is allowed."""
        if self.to is not None:
            return rounded_up(self.to)
        if self.by is not None:
            return rounded_up(size + self.by)
        # Computed from the decimal text: a float would be off by some bytes, or overflow.
        return rounded_up(size + math.ceil(size * Fraction(str(self.percent)) / 100))

    def target(self, size: int) -> int:
        """Return the new size of a volume that has ``size`` bytes.

        Raises:
            ShrinkRefused: the new size is smaller than the current one.
            SizeLimitExceeded: the new size is larger than a volume may be.
        """
        target = self.requested_size(size)
        field = next(name for name, value in vars(self).items() if value is not None)
        if target < size:
            raise ShrinkRefused(field=field, size=size)
        if target > MAX_SIZE:
            raise SizeLimitExceeded(f"A volume can have at most {MAX_SIZE} bytes.", field=field, limit=MAX_SIZE)
        return target
