"""A bulk job as something that a schedule asks for, in the words in which a client asks for one."""

from collections.abc import Callable, Container
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.selection import Selection
from domain.jobs.model import Job


class _Request(Protocol):
    @property
    def selection(self) -> Selection: ...


Request = TypeVar("Request", bound=_Request)
_Asked_contra = TypeVar("_Asked_contra", contravariant=True)


class _Service(Protocol[_Asked_contra]):
    def check(self, wanted: _Asked_contra) -> None: ...

    async def add(self, session: AsyncSession, wanted: _Asked_contra, **columns: Any) -> Job: ...


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
        wanted = self._read(params)
        wanted.selection.require_backend(self._backends)
        self._service.check(wanted)

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Ask for the job, in the given transaction.

        Raises:
            Invalid: it cannot be asked for any more.
        """
        wanted = self._read(params)
        return await self._service.add(session, wanted, schedule_id=schedule_id, scheduled_for=scheduled_for)
