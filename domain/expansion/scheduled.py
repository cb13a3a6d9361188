"""Bulk expansion as something that a schedule asks for, in the words in which a client asks for one."""

from collections.abc import Container
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.errors import Invalid, UnknownBackend
from domain.expansion.policy import BulkExpansion
from domain.expansion.service import ExpansionService
from domain.jobs.model import Job

_GROWTH: Final = ("to", "by", "percent", "step", "up_to", "usage_above")
_SELECTION: Final = ("ids", "labels", "backend")
_NOTHING_SAID: Final[dict[str, Any]] = {"ids": None, "labels": {}, "backend": None}
_DEFAULT_CONCURRENT: Final = 10


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
        backend = wanted.selection.backend
        if backend is not None and backend not in self._backends:
            raise UnknownBackend(f"There is no backend named {backend!r}.", field="backend")
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
    """Read a wish as it is on the wire: one level deep, and nothing in it that was not said.

    Raises:
        Invalid: naming the member.
    """
    unknown = params.keys() - {*_GROWTH, *_SELECTION, "policy", "max_concurrent"}
    if unknown:
        raise Invalid("There is no such member.", field=min(unknown))
    growth = {name: params[name] for name in _GROWTH if name in params}
    selection = {name: params[name] for name in _SELECTION if name in params}
    return BulkExpansion.of(
        {
            "policy": params.get("policy", growth),
            "selection": _NOTHING_SAID | selection,
            "max_concurrent": params.get("max_concurrent", _DEFAULT_CONCURRENT),
        }
    )
