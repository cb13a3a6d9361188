"""What the requests of all kinds of bulk jobs have in common."""

from datetime import datetime
from typing import Any, ClassVar, Protocol, Self
from uuid import UUID

from domain.bulk.selection import Selection
from domain.jobs.kinds import JobKind


class BulkRequest(Protocol):
    """A request for a bulk job, of a client or of a schedule."""

    kind: ClassVar[JobKind]

    @property
    def selection(self) -> Selection:
        """The volumes."""

    @property
    def max_concurrent(self) -> int:
        """How many volumes are worked on at once, over all workers."""

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API.

        Raises:
            Invalid: a member is unknown or out of bounds; names it.
        """

    def require_unscheduled(self) -> None:
        """Refuse members that only the request of a schedule may have.

        Raises:
            Invalid: names the member.
        """

    def job_params(self, *, time: datetime, schedule_id: UUID | None) -> dict[str, Any]:
        """Return the params of a job that is requested or due at ``time``."""

    @classmethod
    def retry_params(cls, params: dict[str, Any], *, time: datetime) -> dict[str, Any]:
        """Return the params of a retry that is requested at ``time``, from those of the ended job."""
