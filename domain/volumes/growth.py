"""How much larger a volume shall be: one of three ways to say it."""

import math
from dataclasses import dataclass
from fractions import Fraction

from domain.errors import Invalid, ShrinkRefused, SizeLimitExceeded
from domain.volumes.model import MAX_SIZE


@dataclass(frozen=True)
class Growth:
    """Grow ``to`` a size or ``by`` an amount, both in bytes, or by ``percent`` of the present size."""

    to: int | None = None
    by: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        """Refuse anything but one positive wish."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise Invalid("Say exactly one of `to`, `by` and `percent`.", field="to")
        ((name, value),) = given.items()
        if not 0 < value < math.inf:
            raise Invalid("Growth must be a number, and more than nothing.", field=name)

    def requested_size(self, size: int) -> int:
        """The size that is wished for a volume of ``size`` bytes, be it possible or not."""
        if self.to is not None:
            return self.to
        if self.by is not None:
            return size + self.by
        # As a fraction of what was written: a float would be off by some bytes, or overflow.
        return size + math.ceil(size * Fraction(str(self.percent)) / 100)

    def target(self, size: int) -> int:
        """The new size of a volume that has ``size`` bytes.

        Raises:
            ShrinkRefused: it would be smaller than it is.
            SizeLimitExceeded: it would be larger than any volume may be.
        """
        target = self.requested_size(size)
        field = next(name for name, value in vars(self).items() if value is not None)
        if target < size:
            raise ShrinkRefused(field=field, size=size)
        if target > MAX_SIZE:
            raise SizeLimitExceeded(f"A volume can have at most {MAX_SIZE} bytes.", field=field, limit=MAX_SIZE)
        return target
