"""The dry run of a bulk expansion: what it would do, decided by the last measured usage. It changes nothing.

It may read a million volumes, in the process that also answers every other request. So it reads them in pages, between
which the process does other work, and few dry runs are carried out at once.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from sqlalchemy import Row

from domain.bulk.expand import BulkExpandRequest, Policy, why_unknown
from domain.bulk.ledger import PLAN_SECONDS, selected_volumes
from domain.bulk.model import ItemCode
from domain.db.database import Database
from domain.errors import TooManyDryRuns
from domain.volumes.filesystems.usage import VolumeUsage, usage_columns
from domain.volumes.model import Volume

#: Maximum number of volumes that a preview lists.
_PREVIEW_LIMIT: Final = 1000
#: Number of volumes between two pauses: they take some 10 ms.
_PAGE: Final = 500
#: Maximum number of dry runs at once, and of those that wait for their turn.
_MAX_RUNNING, _MAX_WAITING = 2, 8
#: Plain columns: entities would take three times as long.
_COLUMNS: Final = (Volume.id, Volume.name, Volume.size, Volume.used_at, Volume.autogrow, Volume.filesystem)


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, by its last measured usage.

    ``used_at`` without ``used``: it was measured, and its backend could not tell.
    """

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: ItemCode | None
    used: int | None
    used_at: datetime | None
    detail: str | None = None
    #: Whether the decision needs a measurement, and nobody has made one.
    awaits_measurement: bool = False

    @classmethod
    def of(cls, volume: Volume | Row[Any], usage: VolumeUsage, policy: Policy) -> Self:
        """Decide about a volume by its policy, as `ExpandOperation` would if it measured the same."""
        decision = policy.new_size(volume.size, usage.used, volume.autogrow, usage)
        code, to_size = (decision, None) if isinstance(decision, ItemCode) else (None, decision)
        detail = why_unknown(usage, volume.filesystem) if code is ItemCode.USAGE_UNKNOWN else None
        # The expansion measures blocks itself, but does not wait for the report of a node.
        awaits = code is ItemCode.USAGE_UNKNOWN and usage.is_new and volume.filesystem is None
        used, used_at = usage.used, volume.used_at
        return cls(volume.id, volume.name, volume.size, to_size, code, used, used_at, detail, awaits)


@dataclass(frozen=True)
class Plan:
    """What a bulk expansion would do: expand ``grows`` of ``total`` volumes, by ``bytes`` in all.

    ``measured_at`` is the time of the oldest measurement used, ``unmeasured`` the number of volumes whose growth
    depends on a measurement that nobody has made; ``items`` has the first 1000 volumes.
    """

    total: int
    grows: int
    bytes: int
    measured_at: datetime | None
    items: list[Preview]
    unmeasured: int = 0


class DryRuns:
    """The dry runs of one process: two at once, and eight that wait for their turn."""

    def __init__(self) -> None:
        self._running = asyncio.Semaphore(_MAX_RUNNING)
        self._number = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, which lasts for the block.

        Raises:
            TooManyDryRuns: too many wait already.
        """
        if self._number >= _MAX_RUNNING + _MAX_WAITING:
            raise TooManyDryRuns
        self._number += 1
        try:
            async with self._running:
                yield
        finally:
            self._number -= 1


async def preview(database: Database, request: BulkExpandRequest, project_id: UUID) -> Plan:
    """Return what a bulk expansion would do in a project, by the last measured usage."""
    total = grows = growth = unmeasured = 0
    oldest: datetime | None = None
    items: list[Preview] = []
    columns = *_COLUMNS, *usage_columns()
    query = selected_volumes(project_id, request.selection, *columns).execution_options(yield_per=_PAGE)
    async with database.transaction(statement_seconds=PLAN_SECONDS) as session:
        volumes = await session.stream(query)
        async for page in volumes.partitions():
            for volume in page:
                item = Preview.of(volume, VolumeUsage(*volume[len(_COLUMNS) :]), request.policy)
                total += 1
                grows += item.to_size is not None
                growth += 0 if item.to_size is None else item.to_size - item.from_size
                unmeasured += item.awaits_measurement
                oldest = min(filter(None, (oldest, item.used_at)), default=None)
                if len(items) < _PREVIEW_LIMIT:
                    items.append(item)
            await asyncio.sleep(0)  # the next page may have arrived already
    return Plan(total, grows, growth, oldest, items, unmeasured)
