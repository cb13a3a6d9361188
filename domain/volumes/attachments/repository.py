"""Queries on the tables of attachments and mounts. Takes a session, never commits."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from domain.volumes.attachments.model import Attachment


async def attached_ones(session: AsyncSession, volume_ids: Collection[UUID]) -> set[UUID]:
    """Return which of these volumes are attached; that does not change while a job holds them."""
    query = select(Attachment.volume_id).where(Attachment.volume_id.in_(volume_ids))
    return set((await session.scalars(query)).all())
