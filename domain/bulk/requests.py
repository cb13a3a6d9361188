"""Requests for bulk jobs, of clients and of schedules: the volumes, and how many are worked on at once."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar, Final, Self
from uuid import UUID

from domain.errors import Invalid, UnknownBackend
from domain.jobs.kinds import JobKind

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


@dataclass(frozen=True, kw_only=True)
class BulkRequest(ABC):
    """A request for a bulk job on ``selection``, on ``max_concurrent`` volumes at once over all workers."""

    kind: ClassVar[JobKind]

    selection: Selection = field(default_factory=Selection)
    max_concurrent: int = DEFAULT_CONCURRENT

    def to_json(self) -> dict[str, Any]:
        """Convert to the params of the job."""
        return {"selection": self.selection.to_json(), "max_concurrent": self.max_concurrent}

    @classmethod
    @abstractmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API.

        Raises:
            Invalid: a member is unknown or out of bounds; names it.
        """

    def require_within(self, limit: int) -> None:
        """Require that ``max_concurrent`` is at least 1 and at most the configured ``limit``.

        Raises:
            Invalid: it is not.
        """
        if not 1 <= self.max_concurrent <= limit:
            raise Invalid(f"`max_concurrent` must be between 1 and {limit}.", field="max_concurrent", limit=limit)

    def refuse_schedule_members(self) -> None:  # noqa: B027 (optional)
        """Refuse members that only the request of a schedule may have.

        Raises:
            Invalid: names the member.
        """

    def job_params(self, *, time: datetime, schedule_id: UUID | None) -> dict[str, Any]:  # noqa: ARG002 (for others)
        """Return the params of a job that is requested or due at ``time``."""
        return self.to_json()

    @classmethod
    def retry_params(cls, params: dict[str, Any], *, time: datetime) -> dict[str, Any]:  # noqa: ARG003 (for others)
        """Return the params of a retry that is requested at ``time``, from those of the ended job."""
        return params


def params_from_request(request: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Convert a client's flat request to the params of a bulk job: fill in defaults, move filters to ``selection``.

    ``own`` are the members of the particular kind of bulk job; they are passed through unchecked.

    Raises:
        Invalid: a member is unknown; names it.
    """
    filters = {field.name for field in fields(Selection)}
    if unknown := request.keys() - {*own, *filters, "max_concurrent"}:
        raise Invalid("There is no such member.", field=min(unknown))
    selection = {name: value for name, value in request.items() if name in filters}
    rest = {name: value for name, value in request.items() if name not in filters}
    return {"max_concurrent": DEFAULT_CONCURRENT, "selection": Selection().to_json() | selection} | rest
