"""Which volumes a bulk job is for, and how many of them at once."""

from dataclasses import dataclass, field
from typing import Any, Final, Self
from uuid import UUID

from domain.errors import Invalid

_MAX_LANES: Final = 8


@dataclass(frozen=True)
class Selection:
    """Which volumes; what is None or empty does not restrict."""

    ids: tuple[UUID, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    backend: str | None = None

    def params(self) -> dict[str, Any]:
        """Say it as JSON, for the job."""
        ids = None if self.ids is None else [str(volume_id) for volume_id in self.ids]
        return {"ids": ids, "labels": self.labels, "backend": self.backend}

    @classmethod
    def of(cls, params: dict[str, Any]) -> Self:
        """Read it from a job."""
        ids = None if params["ids"] is None else tuple(UUID(volume_id) for volume_id in params["ids"])
        return cls(ids, params["labels"], params["backend"])


def require_within(max_concurrent: int, limit: int) -> None:
    """Refuse to work on more volumes at once than is configured, or on none.

    Raises:
        Invalid: it is so.
    """
    if not 1 <= max_concurrent <= limit:
        raise Invalid(f"`max_concurrent` must be between 1 and {limit}.", field="max_concurrent", limit=limit)


def shares(max_concurrent: int) -> list[int]:
    """Share slots out among as many lanes as make sense, as evenly as possible."""
    lanes = min(max_concurrent, _MAX_LANES)
    each, over = divmod(max_concurrent, lanes)
    return [each + (number < over) for number in range(lanes)]
