"""Queries on what is known of the file systems of volumes. Takes a session, never commits."""

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Text, Uuid, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import array_rows
from domain.volumes.filesystems.usage import VolumeUsage, usage_columns
from domain.volumes.model import Volume


async def usage_of(session: AsyncSession, volume_ids: Collection[UUID]) -> dict[UUID, VolumeUsage]:
    """Return what the rows of volumes say of their use."""
    query = select(Volume.id, *usage_columns()).where(Volume.id.in_(volume_ids))
    return {row[0]: VolumeUsage(*row[1:]) for row in await session.execute(query)}


async def record_growths(session: AsyncSession, found: Mapping[UUID, Mapping[str, Any]]) -> None:
    """Store what jobs report of the file systems of volumes, whose rows are locked; others are left out."""
    rows = [
        {"id": id_, "grown_to": one.get("filesystem_grown_to"), "error": one.get("filesystem_error")}
        for id_, one in found.items()
        if "filesystem_grown_to" in one or "filesystem_error" in one
    ]
    if not rows:
        return
    given = array_rows(rows, id=Uuid(), grown_to=BigInteger(), error=Text())
    grown_to = func.coalesce(given.c.grown_to, Volume.filesystem_grown_to)
    query = update(Volume).where(Volume.id == given.c.id)
    query = query.values(filesystem_grown_to=grown_to, filesystem_error=given.c.error)
    await session.execute(query.execution_options(synchronize_session=False))
