"""Which snapshots a schedule keeps."""

from dataclasses import dataclass
from typing import Final

from domain.errors import Invalid

#: A hundred years of nights, or of days.
MAX_KEPT: Final = 36_500


@dataclass(frozen=True)
class RetentionRule:
    """Which of its own snapshots of a volume a schedule keeps: whatever a rule keeps, and always the newest.

    ``last`` counts snapshots, ``days`` is their age; without any rule all are kept.
    """

    last: int | None = None
    days: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense, naming the field."""
        for name, value in self.to_json().items():
            if value is not None and not 1 <= value <= MAX_KEPT:
                raise Invalid(f"`{name}` must be between 1 and {MAX_KEPT}.", field=name)

    @property
    def named(self) -> str | None:
        """The name of a rule as a user knows it; None if there is none."""
        return next((name for name, value in self.to_json().items() if value is not None), None)

    def to_json(self) -> dict[str, int | None]:
        """Say it as JSON, for the job."""
        return {"keep_last": self.last, "keep_days": self.days}
