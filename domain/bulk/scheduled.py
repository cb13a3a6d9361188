"""A bulk job as something that a schedule asks for, in the words in which a client asks for one."""

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
    """An action of schedules: one kind of bulk job."""

    def __init__(
        self, service: _Service[Request], read: Callable[[dict[str, Any]], Request], backends: Container[str]
    ) -> None:
        """``read`` makes a request of parameters as they are on the wire."""
        self._service = service
        self._read = read
        self._backends = backends

    def check(self, params: dict[str, Any]) -> None:
        """Refuse parameters of which no such job can be made.

        Raises:
            Invalid: naming the parameter.
        """
        request = self._read(params)
        request.selection.require_backend(self._backends)
        self._service.check(request)

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Ask for the job, in the given transaction.

        Raises:
            Invalid: it cannot be asked for any more.
        """
        request = self._read(params)
        return await self._service.add(session, request, schedule_id=schedule_id, scheduled_for=scheduled_for)
