"""The filters of the lists. A field of a form that is left empty is no filter."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from pydantic import BeforeValidator, Field
from pydantic_core import to_json

from api.schemas.pagination import PageQuery
from domain.bulk.model import ItemStatus
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobFilter
from domain.operations import VolumeState
from domain.volumes.repository import VolumeFilter

_MAX_TEXT: Final = 128
_PERCENT: Final = 100
_MAX_HOURS: Final = 10_000

Value = TypeVar("Value")
#: An empty text is None.
_Optional = Annotated[Value | None, BeforeValidator(lambda value: value or None)]
#: PostgreSQL takes every character but one.
_Text = Annotated[str, Field(max_length=_MAX_TEXT, pattern=r"^[^\x00]*$")]


class ListQuery(PageQuery):
    """The filters of a list, and where its page begins."""

    @property
    def kept(self) -> str:
        """The filters as the beginning of a query string, for the link to the next page."""
        given = self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)
        return "".join(f"{urlencode({name: value})}&" for name, value in given.items())


class JobsQuery(ListQuery):
    """The filters of the list of jobs."""

    status: _Optional[JobStatus] = None
    kind: _Optional[_Text] = None
    created_by: _Optional[_Text] = None
    volume_id: _Optional[UUID] = None
    schedule_id: _Optional[UUID] = None
    hours: _Optional[Annotated[int, Field(ge=1, le=_MAX_HOURS)]] = None

    def filters(self) -> JobFilter:
        """Convert to the filter of the domain."""
        return JobFilter(
            self.status,
            self.kind,
            self.volume_id,
            created_by=self.created_by,
            schedule_id=self.schedule_id,
            created_after=None if self.hours is None else datetime.now(UTC) - timedelta(hours=self.hours),
        )

    @property
    def selectors(self) -> str:
        """The filters as the body of a request that changes all jobs that match."""
        given = {name: value for name, value in asdict(self.filters()).items() if value is not None}
        return to_json(given).decode()


class LedgerQuery(ListQuery):
    """The filter of a job's ledger."""

    status: _Optional[ItemStatus] = None


class VolumesQuery(ListQuery):
    """The filters of the list of volumes."""

    name: _Optional[_Text] = None
    state: _Optional[VolumeState] = None
    backend: _Optional[_Text] = None
    label: _Optional[_Text] = None
    usage_above: _Optional[Annotated[float, Field(ge=0, le=_PERCENT)]] = None

    def filters(self) -> VolumeFilter:
        """Convert to the filter of the domain; a label without a colon matches nothing but an empty value."""
        key, _, value = (self.label or "").partition(":")
        return VolumeFilter(
            state=self.state,
            labels={key: value} if key else {},
            name_part=self.name,
            backend=self.backend,
            usage_above=self.usage_above,
        )


class AuditPageQuery(ListQuery):
    """The filters of the audit log on the page of settings."""

    name: _Optional[_Text] = None
    action: _Optional[_Text] = None
