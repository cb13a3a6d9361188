"""Snapshots of many volumes as something that a schedule asks for, and of which it may keep only some."""

from collections.abc import Container
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.selection import read_wish
from domain.jobs.model import Job
from domain.snapshots.bulk import BulkSnapshotService
from domain.snapshots.policy import BulkSnapshot

#: What is meant where nothing is said: no name, which is refused, and all are kept.
_UNSAID: Final[dict[str, Any]] = {"name": "", "keep_last": None, "keep_days": None}


class ScheduledSnapshots:
    """The action `bulk.snapshot`."""

    def __init__(self, snapshots: BulkSnapshotService, backends: Container[str]) -> None:
        self._snapshots = snapshots
        self._backends = backends

    def check(self, params: dict[str, Any]) -> None:
        """Refuse parameters of which no snapshots can be taken.

        Raises:
            Invalid: naming the parameter.
        """
        wanted = wished(params)
        wanted.selection.require_backend(self._backends)
        self._snapshots.check(wanted, scheduled=True)

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        """Ask for the snapshots, in the given transaction.

        Raises:
            Invalid: they cannot be asked for any more.
        """
        return await self._snapshots.add(session, wished(params), schedule_id=schedule_id, scheduled_for=scheduled_for)


def wished(params: dict[str, Any]) -> BulkSnapshot:
    """Read a wish as it is on the wire.

    Raises:
        Invalid: naming the member.
    """
    return BulkSnapshot.of(_UNSAID | read_wish(params, own=_UNSAID))
