"""The request for bulk snapshots: the volumes, the snapshots' name, and the retention rule of a schedule."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self
from uuid import UUID

from domain.bulk.selection import DEFAULT_CONCURRENT, Selection, from_request
from domain.errors import Invalid
from domain.jobs.kinds import JobKind
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import MAX_NAME

#: Length of what is added to the name: the time, and the end of the schedule's id. It tells the snapshots of different
#: runs apart, also of two schedules with the same name that are due at the same time.
_STAMP_LENGTH: Final = len("-20260131T235959123Z-0123456789ab")
MAX_PREFIX: Final = MAX_NAME - _STAMP_LENGTH
#: Defaults of the request's own members. The empty name is rejected; without retention rule all snapshots are kept.
_DEFAULTS: Final[dict[str, Any]] = {"name": "", "keep_last": None, "keep_days": None}


@dataclass(frozen=True)
class BulkSnapshotRequest:
    """A request to take snapshots of many volumes, of ``max_concurrent`` at once over all workers.

    The snapshots' name is ``name`` followed by the time, and by the end of the schedule's id if a schedule takes them.
    """

    kind: ClassVar = JobKind.BULK_SNAPSHOT

    name: str
    selection: Selection = field(default_factory=Selection)
    max_concurrent: int = DEFAULT_CONCURRENT
    keep: RetentionRule = field(default_factory=RetentionRule)

    def __post_init__(self) -> None:
        """Reject a name that is empty or too long."""
        if not 1 <= len(self.name) <= MAX_PREFIX:
            raise Invalid(f"`name` must have 1 to {MAX_PREFIX} characters; the time is added to it.", field="name")

    def to_json(self) -> dict[str, Any]:
        """Convert to the params of the job."""
        params = {"name": self.name, "selection": self.selection.to_json(), "max_concurrent": self.max_concurrent}
        return params | self.keep.to_json()

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Build from the params of a job."""
        selection = Selection.from_json(params["selection"])
        keep = RetentionRule(params["keep_last"], params["keep_days"])
        return cls(params["name"], selection, params["max_concurrent"], keep)

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API.

        Raises:
            Invalid: a member is unknown or out of bounds; names it.
        """
        return cls.from_json(_DEFAULTS | from_request(request, own=_DEFAULTS))

    def require_unscheduled(self) -> None:
        """Refuse a retention rule.

        Raises:
            Invalid: names its member.
        """
        if (keep := self.keep.first_field) is not None:
            raise Invalid(f"`{keep}` is for schedules: they delete only their own snapshots.", field=keep)

    def job_params(self, *, time: datetime, schedule_id: UUID | None) -> dict[str, Any]:
        """Return the params of the job.

        They include ``schedule_id``, because a retry takes snapshots for the same schedule, but is not a run of it.
        """
        params = self.to_json() | {"schedule_id": None if schedule_id is None else str(schedule_id)}
        return self.retry_params(params, time=time)

    @classmethod
    def retry_params(cls, params: dict[str, Any], *, time: datetime) -> dict[str, Any]:
        """Give the snapshots a new name: they show the volumes as of ``time``."""
        return params | {"snapshot_name": stamped(params["name"], time.astimezone(UTC), params.get("schedule_id"))}


def stamped(name: str, time: datetime, schedule_id: str | None) -> str:
    """Return the name of the snapshots of one run; ``time`` is in UTC, and is written to the millisecond."""
    stamp = f"{name}-{time:%Y%m%dT%H%M%S}{time.microsecond // 1000:03}Z"
    return stamp if schedule_id is None else f"{stamp}-{schedule_id[-12:]}"
