"""Bulk expansion as something that a schedule asks for, in the words in which a client asks for one."""

from collections.abc import Container
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.selection import read_wish
from domain.expansion.policy import BulkExpansion
from domain.expansion.service import ExpansionService
from domain.jobs.model import Job

_GROWTH: Final = ("to", "by", "percent", "step", "up_to", "usage_above")


class ScheduledExpansion:
    """The action `bulk.expand`."""

    def __init__(self, expansion: ExpansionService, backends: Container[str]) -> None:
        self._expansion = expansion
        self._backends = backends

    def check(self, params: dict[str, Any]) -> None:
        """Refuse parameters of which no bulk expansion can be made.

        Raises:
            Invalid: naming the parameter.
        """
        wanted = wished(params)
        wanted.selection.require_backend(self._backends)
        self._expansion.check(wanted)

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Ask for the bulk expansion, in the given transaction.

        Raises:
            Invalid: it cannot be asked for any more.
        """
        return await self._expansion.add(session, wished(params), schedule_id=schedule_id, scheduled_for=scheduled_for)


def wished(params: dict[str, Any]) -> BulkExpansion:
    """Read a wish as it is on the wire.

    Raises:
        Invalid: naming the member.
    """
    wish = read_wish(params, own={*_GROWTH, "policy"})
    growth = {name: wish[name] for name in _GROWTH if name in wish}
    return BulkExpansion.of({"policy": growth} | wish)
