"""What a schedule may ask for; `domain.services` holds the one table of actions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.model import Job

Params = dict[str, Any]


class Action(Protocol):
    """Something that can be asked for again and again, as its parameters say."""

    def check(self, params: Params) -> None:
        """Refuse parameters that cannot be used.

        Raises:
            Invalid: naming the parameter.
        """

    async def request(
        self, session: AsyncSession, params: Params, *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Ask for it: the job is added in the given transaction; whoever commits rings.

        Raises:
            Refused: it cannot be asked for any more.
        """


Actions = Mapping[str, Action]
