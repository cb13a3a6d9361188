"""The interface of the actions that a schedule can request; `domain.services` has the table of actions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.model import Job

Params = dict[str, Any]


class Action(Protocol):
    """A kind of job that can be requested repeatedly with the same parameters."""

    def check(self, params: Params) -> None:
        """Reject unusable parameters.

        Raises:
            Invalid: names the parameter.
        """

    async def request(
        self, session: AsyncSession, params: Params, *, project_id: UUID, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Insert the job in the caller's transaction. The caller dispatches it after the commit.

        Raises:
            Refused: the action is no longer possible with these parameters.
        """


Actions = Mapping[str, Action]
