"""Bulk jobs as actions of schedules; their parameters have the same form as a client's request."""

from collections.abc import Callable, Container
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.selection import Selection
from domain.jobs.model import Job


class _BulkRequest(Protocol):
    @property
    def selection(self) -> Selection: ...


Request = TypeVar("Request", bound=_BulkRequest)
_Request_contra = TypeVar("_Request_contra", contravariant=True)


class _Service(Protocol[_Request_contra]):
    def check(self, request: _Request_contra) -> None: ...

    async def add(self, session: AsyncSession, request: _Request_contra, **columns: Any) -> Job: ...


class ScheduledBulk(Generic[Request]):
    """An `Action` that requests one kind of bulk job."""

    def __init__(
        self, service: _Service[Request], from_request: Callable[[dict[str, Any]], Request], backends: Container[str]
    ) -> None:
        """Create the action; ``from_request`` converts the schedule's parameters."""
        self._service = service
        self._from_request = from_request
        self._backends = backends

    def check(self, params: dict[str, Any]) -> None:
        """Reject parameters from which no job can be made.

        Raises:
            Invalid: names the parameter.
        """
        request = self._from_request(params)
        request.selection.require_backend(self._backends)
        self._service.check(request)

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Insert the job in the given transaction.

        Raises:
            Invalid: the parameters are no longer valid.
        """
        request = self._from_request(params)
        return await self._service.add(session, request, schedule_id=schedule_id, scheduled_for=scheduled_for)
