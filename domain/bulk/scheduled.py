"""Bulk jobs as actions of schedules."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.requests import BulkRequest
from domain.bulk.service import BulkService
from domain.jobs.model import Job


class ScheduledBulk:
    """The `Action` of schedules for one kind of bulk job; its parameters have the same form as a client's request."""

    def __init__(self, bulk: BulkService, request_type: type[BulkRequest], backends: Iterable[str]) -> None:
        self._bulk = bulk
        self._request_type = request_type
        self._backends = backends

    def check(self, params: dict[str, Any]) -> None:
        """Reject parameters from which no job can be made.

        Raises:
            Invalid: names the parameter.
        """
        request = self._request_type.from_request(params)
        request.selection.require_backend(self._backends)
        self._bulk.check(request)

    async def request(
        self,
        session: AsyncSession,
        params: dict[str, Any],
        *,
        project_id: UUID,
        schedule_id: UUID,
        scheduled_for: datetime,
    ) -> Job:
        """Insert the job in the given transaction.

        Raises:
            Invalid: the parameters are no longer valid.
        """
        request = self._request_type.from_request(params)
        run = {"schedule_id": schedule_id, "scheduled_for": scheduled_for}
        return await self._bulk.add(session, request, project_id=project_id, **run)
