"""The rule by which a schedule keeps its snapshots."""

from dataclasses import dataclass
from typing import Final

from domain.errors import Invalid

#: Maximum of ``keep_last`` (snapshots) and ``keep_days``: a hundred years of daily snapshots, or of days.
MAX_KEPT: Final = 36_500


@dataclass(frozen=True)
class RetentionRule:
    """Which of its own snapshots of a volume a schedule keeps.

    The ``last`` n snapshots and those younger than ``days`` are kept, and always the newest one. If neither is set, all
    are kept.
    """

    last: int | None = None
    days: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of bounds, naming the field."""
        for name, value in self.to_json().items():
            if value is not None and not 1 <= value <= MAX_KEPT:
                raise Invalid(f"`{name}` must be between 1 and {MAX_KEPT}.", field=name)

    @property
    def first_field(self) -> str | None:
        """The request field of the first limit that is set; None if all snapshots are kept."""
        return next((name for name, value in self.to_json().items() if value is not None), None)

    def to_json(self) -> dict[str, int | None]:
        """Convert to the members of a job's params."""
        return {"keep_last": self.last, "keep_days": self.days}
