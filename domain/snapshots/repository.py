"""Every question that is asked of the table of snapshots, by name. Takes a session, never commits."""

from uuid import UUID

from sqlalchemy import literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from domain.errors import VolumeHasSnapshots
from domain.snapshots.model import Snapshot


async def refuse_if_it_has_snapshots(session: AsyncSession, volume_id: UUID) -> None:
    """Keep a volume from being deleted as long as it has snapshots.

    Raises:
        VolumeHasSnapshots: it has.
    """
    any_of_them = select(literal(1)).where(Snapshot.volume_id == volume_id).limit(1)
    if await session.scalar(any_of_them) is not None:
        raise VolumeHasSnapshots
