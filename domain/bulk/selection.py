"""The selection of volumes for a bulk job, and the number of volumes worked on at once."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self
from uuid import UUID

from domain.errors import Invalid, UnknownBackend
from domain.jobs.model import Job

_MAX_LANES: Final = 8
DEFAULT_CONCURRENT: Final = 10


@dataclass(frozen=True)
class Selection:
    """Filters for volumes; a filter that is None or empty matches all.

    With ``require_any``, a job that selects no volume fails.
    """

    ids: tuple[UUID, ...] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    backend: str | None = None
    require_any: bool = False

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON stored in a job."""
        ids = None if self.ids is None else [str(volume_id) for volume_id in self.ids]
        return {"ids": ids, "labels": self.labels, "backend": self.backend, "require_any": self.require_any}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Build from the JSON stored in a job."""
        ids = None if params["ids"] is None else tuple(UUID(volume_id) for volume_id in params["ids"])
        return cls(ids, params["labels"], params["backend"], params.get("require_any", False))

    def require_backend(self, backends: Iterable[str]) -> None:
        """Require that the backend, if one is given, is among ``backends``.

        Raises:
            UnknownBackend: it is not.
        """
        if self.backend is not None and self.backend not in (known := list(backends)):
            raise UnknownBackend(self.backend, known)


def from_request(request: Mapping[str, Any], own: Container[str]) -> dict[str, Any]:
    """Convert a client's flat request to the params of a bulk job: fill in defaults, move filters to ``selection``.

    ``own`` are the members of the particular kind of bulk job; they are passed through unchecked.

    Raises:
        Invalid: a member is unknown; names it.
    """
    filters = {field.name for field in fields(Selection)}
    if unknown := [name for name in request if name not in own and name not in {*filters, "max_concurrent"}]:
        raise Invalid("There is no such member.", field=min(unknown))
    selection = {name: value for name, value in request.items() if name in filters}
    rest = {name: value for name, value in request.items() if name not in filters}
    return {"max_concurrent": DEFAULT_CONCURRENT, "selection": Selection().to_json() | selection} | rest


def retry_params(ended: Job) -> dict[str, Any]:
    """Return the params of a retry: only the items that failed, or were not started when the job was cancelled.

    A job that ended before it was planned has no items; its retry selects volumes anew.
    """
    missed = {} if ended.total is None else {"missed_by": str(ended.id)}
    return ended.params | missed


def require_within(max_concurrent: int, limit: int) -> None:
    """Require that ``max_concurrent`` is at least 1 and at most the configured ``limit``.

    Raises:
        Invalid: it is not.
    """
    if not 1 <= max_concurrent <= limit:
        raise Invalid(f"`max_concurrent` must be between 1 and {limit}.", field="max_concurrent", limit=limit)


def slots_per_lane(max_concurrent: int) -> list[int]:
    """Divide ``max_concurrent`` slots as evenly as possible among up to 8 lanes."""
    lanes = min(max_concurrent, _MAX_LANES)
    slots, remainder = divmod(max_concurrent, lanes)
    return [slots + (number < remainder) for number in range(lanes)]
