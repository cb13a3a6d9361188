"""What clients send about schedules, and what schedules and their runs look like on the wire."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self
from uuid import UUID

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from api.schemas.base import Body
from api.schemas.bulk_snapshots import ScheduledSnapshotIn
from api.schemas.fields import JobKind, Moment, Name
from api.schemas.growth import BulkExpandFields
from api.schemas.omittable import Given, Omittable
from api.schemas.pagination import PageQuery
from domain.bulk.kinds import EXPAND, SNAPSHOT
from domain.jobs.states import JobStatus
from domain.schedules.model import CATCH_UP_SECONDS, Run, Schedule
from domain.schedules.service import NewSchedule
from domain.schedules.states import RunOutcome

_SCHEDULE_ID = "01a0b1c2-0000-7000-8000-000000000004"
_RUN_ID = "01a0b1c2-0000-7000-8000-000000000005"
_JOB_ID = "01a0b1c2-0000-7000-8000-000000000002"
_TIME = "2026-01-31T02:00:00.000000Z"
#: A window of a year is one that never closes.
_MAX_CATCH_UP: Final = 366 * 86_400

SCHEDULE_IN_EXAMPLE: dict[str, Any] = {
    "name": "grow-search",
    "cron": "30 2 * * *",
    "time_zone": "Europe/Berlin",
    "action": "bulk.expand",
    "params": {"percent": 20, "usage_above": 80, "labels": {"team": "search"}},
}
RUN_EXAMPLE: dict[str, Any] = {
    "id": _RUN_ID,
    "scheduled_for": _TIME,
    "last_scheduled_for": _TIME,
    "count": 1,
    "outcome": "started",
    "detail": None,
    "job_id": _JOB_ID,
    "job_status": "succeeded",
    "created_at": _TIME,
}
SCHEDULE_EXAMPLE: dict[str, Any] = {
    **SCHEDULE_IN_EXAMPLE,
    "id": _SCHEDULE_ID,
    "enabled": True,
    "catch_up_seconds": CATCH_UP_SECONDS,
    "next_run_at": _TIME,
    "last_runs": [RUN_EXAMPLE],
    "created_at": _TIME,
    "updated_at": _TIME,
}


#: The shape of what each action asks for.
PARAMS: Final[dict[str, type[Body]]] = {EXPAND: BulkExpandFields, SNAPSHOT: ScheduledSnapshotIn}

Cron = Annotated[
    str,
    StringConstraints(max_length=100),
    Field(description="Minute, hour, day of month, month, day of week.", examples=["30 2 * * *"]),
]
TimeZone = Annotated[
    str,
    StringConstraints(max_length=100),
    Field(description="IANA name of the time zone in which `cron` is meant.", examples=["Europe/Berlin"]),
]
CatchUp = Annotated[
    int,
    Field(
        ge=0,
        le=_MAX_CATCH_UP,
        strict=True,
        description="A run that was missed because everything was down is still started within so many seconds;"
        " 0 means a minute.",
    ),
]


def validated_params(action: str, params: dict[str, Any]) -> dict[str, Any]:
    """Read what an action asks for as its own request would, and keep of it what was said.

    Raises:
        RequestValidationError: naming the members within ``params``.
    """
    if action not in PARAMS:
        return params  # the domain refuses the action
    try:
        return PARAMS[action].model_validate(params).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", "params", *one["loc"])} for one in error.errors()]
        ) from error


class ScheduleIn(Body):
    """A schedule to be."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCHEDULE_IN_EXAMPLE]})

    name: Name
    cron: Cron
    time_zone: TimeZone = "UTC"
    action: Annotated[JobKind, Field(json_schema_extra={"enum": sorted(PARAMS)}, examples=[EXPAND])]
    params: Annotated[
        dict[str, Any],
        Field(
            description="As the body of the action's own request: `POST /volumes/expand`, without `dry_run`, or"
            " `POST /volumes/snapshots`. To snapshots it may add what the schedule keeps of its own, volume by volume:"
            " the last `keep_last`, and those of the last `keep_days` days; without either, all."
        ),
    ]
    enabled: Annotated[bool, Field(strict=True)] = True
    catch_up_seconds: CatchUp = CATCH_UP_SECONDS

    def new_schedule(self) -> NewSchedule:
        """Say it to the domain.

        Raises:
            RequestValidationError: ``params`` is not what the action asks for.
        """
        return NewSchedule(**self.model_dump(exclude={"params"}), params=validated_params(self.action, self.params))


class SchedulePatch(Body):
    """What to change of a schedule; what is absent stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}]})

    name: Given[Name] = None
    cron: Given[Cron] = None
    time_zone: Given[TimeZone] = None
    params: Annotated[
        Given[dict[str, Any]], Field(description="All of them; what is not among them is not asked for any more.")
    ] = None
    enabled: Annotated[Given[Annotated[bool, Field(strict=True)]], Field(description="False pauses it.")] = None
    catch_up_seconds: Given[CatchUp] = None

    def changes(self, action: str) -> dict[str, Any]:
        """Say it to the domain.

        Raises:
            RequestValidationError: ``params`` is not what the action asks for.
        """
        changes = self.model_dump(exclude_unset=True)
        if self.params is not None:
            changes["params"] = validated_params(action, self.params)
        return changes


class ScheduleQuery(PageQuery):
    """Which schedules to list."""

    name: Omittable[Name] = None


class RunOut(BaseModel):
    """What became of one time of a schedule; times that were missed one after the other are told together."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [RUN_EXAMPLE]})

    id: UUID
    scheduled_for: Moment = Field(description="When it was due; of several times, the first.")
    last_scheduled_for: Moment = Field(description="Of several times, the last.")
    count: int = Field(description="How many times these are; more than one only if they were missed.")
    outcome: RunOutcome
    detail: str | None = Field(description="Why it was skipped.")
    job_id: UUID | None
    job_status: JobStatus | None = Field(description="Null when there is no job, or none any more.")
    created_at: Moment


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
    next_run_at: Moment | None = Field(description="Null while it is paused.")
    last_runs: list[RunOut] = Field(default_factory=list, description="The last five, newest first.")
    created_at: Moment
    updated_at: Moment

    @classmethod
    def from_row(cls, schedule: Schedule, runs: Sequence[Run] = ()) -> Self:
        """Show a row, with its last runs."""
        shown = [RunOut.model_validate(run) for run in runs]
        return cls.model_validate(schedule).model_copy(update={"last_runs": shown})
