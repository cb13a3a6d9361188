"""How much a volume is to grow: to a size, by an amount or by a percentage."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from domain.errors import Invalid, ShrinkRefused, SizeLimitExceeded
from domain.volumes.model import MAX_SIZE

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
        """Return the size requested for a volume of ``size`` bytes, whether or not it is allowed."""
        if self.to is not None:
            return self.to
        if self.by is not None:
            return size + self.by
        # Computed from the decimal text: a float would be off by some bytes, or overflow.
        return size + math.ceil(size * Fraction(str(self.percent)) / 100)

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
