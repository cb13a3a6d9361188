"""Which volumes a bulk job is for, and how many of them at once."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self
from uuid import UUID

from domain.errors import Invalid, UnknownBackend
from domain.jobs.model import Job

_MAX_LANES: Final = 8
DEFAULT_CONCURRENT: Final = 10


@dataclass(frozen=True)
class Selection:
    """Which volumes; what is None or empty does not restrict."""

    ids: tuple[UUID, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    backend: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Say it as JSON, for the job."""
        ids = None if self.ids is None else [str(volume_id) for volume_id in self.ids]
        return {"ids": ids, "labels": self.labels, "backend": self.backend}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Read it from a job."""
        ids = None if params["ids"] is None else tuple(UUID(volume_id) for volume_id in params["ids"])
        return cls(ids, params["labels"], params["backend"])

    def require_backend(self, backends: Container[str]) -> None:
        """Refuse volumes on a backend that there is not.

        Raises:
            UnknownBackend: it is so.
        """
        if self.backend is not None and self.backend not in backends:
            raise UnknownBackend(f"There is no backend named {self.backend!r}.", field="backend")


def from_request(request: Mapping[str, Any], own: Container[str]) -> dict[str, Any]:
    """Read what a client says of a bulk job, one level deep, as a job keeps it; ``own`` members are left as they are.

    Raises:
        Invalid: naming a member that there is not.
    """
    selecting = {field.name for field in fields(Selection)}
    if unknown := [name for name in request if name not in own and name not in {*selecting, "max_concurrent"}]:
        raise Invalid("There is no such member.", field=min(unknown))
    given = {name: value for name, value in request.items() if name in selecting}
    rest = {name: value for name, value in request.items() if name not in selecting}
    return {"max_concurrent": DEFAULT_CONCURRENT, "selection": Selection().to_json() | given} | rest


def retry_params(ended: Job) -> dict[str, Any]:
    """Ask once more for what failed, or was not begun when the job was cancelled, and for nothing else.

    A job that ended before it had a plan is asked for as a whole.
    """
    missed = {} if ended.total is None else {"missed_by": str(ended.id)}
    return ended.params | missed


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
