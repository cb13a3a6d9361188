"""The preview of a bulk expansion, which changes nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.ledger import selected_volumes
from domain.bulk.states import ItemCode
from domain.db.database import Database

_PREVIEW_LIMIT: Final = 1000


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, by its last measured usage."""

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: ItemCode | None
    used: int | None
    used_at: datetime | None


@dataclass(frozen=True)
class Plan:
    """What a bulk expansion would do: expand ``grows`` of ``total`` volumes, by ``bytes`` in all.

    ``measured_at`` is the time of the oldest measurement used; ``items`` has the first 1000 volumes.
    """

    total: int
    grows: int
    bytes: int
    measured_at: datetime | None
    items: list[Preview]


async def preview(database: Database, request: BulkExpandRequest) -> Plan:
    """Return what a bulk expansion would do, by the last measured usage."""
    total = grows = growth = 0
    oldest: datetime | None = None
    items: list[Preview] = []
    async with database.transaction() as session:
        async for volume in await session.stream_scalars(selected_volumes(request.selection)):
            decision = request.policy.new_size(volume.size, volume.used, volume.autogrow)
            code, to_size = (decision, None) if isinstance(decision, ItemCode) else (None, decision)
            total += 1
            grows += to_size is not None
            growth += 0 if to_size is None else to_size - volume.size
            oldest = min(filter(None, (oldest, volume.used_at)), default=None)
            if len(items) < _PREVIEW_LIMIT:
                items.append(Preview(volume.id, volume.name, volume.size, to_size, code, volume.used, volume.used_at))
    return Plan(total, grows, growth, oldest, items)
