"""Schedules: bodies that create and change one, the list filter, and the responses for schedules and their runs."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final, Self
from uuid import UUID

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from api.schemas.base import (
    EXAMPLE_JOB_ID,
    EXAMPLE_RUN_ID,
    EXAMPLE_SCHEDULE_ID,
    MAX_MEMBERS,
    Omittable,
    RequestBody,
    refuse_more,
)
from api.schemas.bulk import BulkExpandFields, ScheduledSnapshotIn
from api.schemas.fields import IdPrefix, JobKind, Name, UtcDatetime
from api.schemas.pagination import PageQuery
from domain.db.listing import shortened
from domain.jobs.kinds import JobKind as Kind
from domain.jobs.states import JobStatus
from domain.schedules.model import CATCH_UP_SECONDS, Run, RunOutcome, Schedule
from domain.schedules.repository import ScheduleFilter
from domain.schedules.service import NewSchedule

#: 366 days: a run is never too late then.
_MAX_CATCH_UP: Final = 366 * 86_400
_EXAMPLE_TIME: Final = "2026-01-31T02:00:00.000000Z"

SCHEDULE_IN_EXAMPLE: Final[dict[str, Any]] = {
    "name": "grow-search",
    "cron": "30 2 * * *",
    "time_zone": "Europe/Berlin",
    "action": "bulk.expand",
    "params": {"percent": 20, "usage_above": 80, "labels": {"team": "search"}},
}
RUN_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_RUN_ID,
    "scheduled_for": _EXAMPLE_TIME,
    "last_scheduled_for": _EXAMPLE_TIME,
    "count": 1,
    "outcome": "started",
    "detail": None,
    "job_id": EXAMPLE_JOB_ID,
    "job_status": "succeeded",
    "created_at": _EXAMPLE_TIME,
}
SCHEDULE_EXAMPLE: Final[dict[str, Any]] = {
    **SCHEDULE_IN_EXAMPLE,
    "id": EXAMPLE_SCHEDULE_ID,
    "enabled": True,
    "catch_up_seconds": CATCH_UP_SECONDS,
    "next_run_at": _EXAMPLE_TIME,
    "last_runs": [RUN_EXAMPLE],
    "created_at": _EXAMPLE_TIME,
    "updated_at": _EXAMPLE_TIME,
}
#: The schema of the params of each action.
PARAMS: Final[dict[str, type[RequestBody]]] = {
    Kind.BULK_EXPAND: BulkExpandFields,
    Kind.BULK_SNAPSHOT: ScheduledSnapshotIn,
}

Cron = Annotated[
    str,
    StringConstraints(max_length=100),
    Field(description="Minute, hour, day of month, month, day of week.", examples=["30 2 * * *"]),
]
TimeZone = Annotated[
    str,
    StringConstraints(max_length=100),
    Field(description="IANA name of the time zone of `cron`.", examples=["Europe/Berlin"]),
]
Params = Annotated[dict[str, Any], BeforeValidator(partial(refuse_more, limit=MAX_MEMBERS))]
CatchUp = Annotated[
    int,
    Field(
        ge=0,
        le=_MAX_CATCH_UP,
        strict=True,
        description="A run missed during an outage is still started if it is at most this many seconds late;"
        " 0 means one minute.",
    ),
]


def validated_params(action: str, params: dict[str, Any]) -> dict[str, Any]:
    """Validate params with the schema of the action, and return the members that the client sent.

    Raises:
        RequestValidationError: with the path of each member within ``params``.
    """
    if action not in PARAMS:
        return params  # the domain rejects the action
    try:
        return PARAMS[action].model_validate(params).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", "params", *one["loc"])} for one in error.errors()]
        ) from error


class ScheduleIn(RequestBody):
    """A schedule to create."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCHEDULE_IN_EXAMPLE]})

    name: Name
    cron: Cron
    time_zone: TimeZone = "UTC"
    action: Annotated[JobKind, Field(json_schema_extra={"enum": sorted(PARAMS)}, examples=[Kind.BULK_EXPAND.value])]
    params: Annotated[
        Params,
        Field(
            description="The body of the action's own request: `POST /volumes/expand` without `dry_run`, or"
            " `POST /volumes/snapshots`. For snapshots, retention rules can be added, which apply per volume to the"
            " snapshots of the schedule: keep the last `keep_last`, and those of the last `keep_days` days; with"
            " neither, all."
        ),
    ]
    enabled: Annotated[bool, Field(strict=True)] = True
    catch_up_seconds: CatchUp = CATCH_UP_SECONDS

    def new_schedule(self) -> NewSchedule:
        """Convert to the domain request.

        Raises:
            RequestValidationError: ``params`` do not match the action.
        """
        return NewSchedule(**self.model_dump(exclude={"params"}), params=validated_params(self.action, self.params))


class SchedulePatch(RequestBody):
    """Changes to a schedule; an absent member is left as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}]})

    name: Omittable[Name] = None
    cron: Omittable[Cron] = None
    time_zone: Omittable[TimeZone] = None
    params: Annotated[Omittable[Params], Field(description="Replaces all params; they are not merged.")] = None
    enabled: Annotated[Omittable[Annotated[bool, Field(strict=True)]], Field(description="False pauses it.")] = None
    catch_up_seconds: Omittable[CatchUp] = None

    def changes(self, action: str) -> dict[str, Any]:
        """Convert to the domain request.

        Raises:
            RequestValidationError: ``params`` do not match the action.
        """
        changes = self.model_dump(exclude_unset=True)
        if self.params is not None:
            changes["params"] = validated_params(action, self.params)
        return changes


class ScheduleQuery(PageQuery):
    """Filters of a list of schedules."""

    name: Omittable[Name] = None
    id_prefix: Omittable[IdPrefix] = None

    def filters(self) -> ScheduleFilter:
        """Convert to the domain filter."""
        return ScheduleFilter(self.name, self.id_prefix)


class RunOut(BaseModel):
    """The outcome of one scheduled time; consecutive missed times are combined into one run."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [RUN_EXAMPLE]})

    id: UUID
    scheduled_for: UtcDatetime = Field(description="Scheduled time; of combined times, the first.")
    last_scheduled_for: UtcDatetime = Field(description="Of combined times, the last.")
    count: int = Field(description="Number of combined times; above 1 only for missed ones.")
    outcome: RunOutcome
    detail: str | None = Field(description="Why it was skipped.")
    job_id: UUID | None
    job_status: JobStatus | None = Field(description="Null if there is no job, or if it has been pruned.")
    created_at: UtcDatetime


class ScheduleOut(BaseModel):
    """One schedule."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [SCHEDULE_EXAMPLE]})

    id: UUID
    name: str
    cron: str
    time_zone: str
    action: str
    params: dict[str, Any]
    enabled: bool
    catch_up_seconds: int
    next_run_at: UtcDatetime | None = Field(description="Null while it is paused.")
    last_runs: list[RunOut] = Field(default_factory=list, description="The last five runs, newest first.")
    created_at: UtcDatetime
    updated_at: UtcDatetime

    @classmethod
    def whole(cls, schedule: Schedule, runs: Sequence[Run] = ()) -> Self:
        """Render a row with its last runs, for the response to a GET of the schedule itself."""
        last_runs = [RunOut.model_validate(run) for run in runs]
        return cls.model_validate(schedule).model_copy(update={"last_runs": last_runs})

    @classmethod
    def from_row(cls, schedule: Schedule, runs: Sequence[Run] = ()) -> Self:
        """Render a row with its last runs, without long params."""
        rendered = cls.whole(schedule, runs)
        return rendered.model_copy(update={"params": shortened(rendered.params)})
