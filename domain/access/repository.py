"""Queries on the table of keys. Takes a session, never commits."""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.access.model import ApiKey
from domain.errors import KeyNotFound


class KeyRepository:
    """The table of keys, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, key: ApiKey) -> ApiKey:
        """Insert a new key."""
        self._session.add(key)
        await self._session.flush()
        await self._session.refresh(key)
        return key

    async def any(self) -> bool:
        """Return whether there is a key that is not revoked."""
        return await self._session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None

    async def valid(self, public_ids: Collection[str]) -> Sequence[ApiKey]:
        """Read the keys with these public ids that are neither revoked nor expired."""
        query = select(ApiKey).where(
            ApiKey.public_id.in_(public_ids),
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
        return (await self._session.scalars(query)).all()

    async def lock(self, key_id: UUID) -> ApiKey:
        """Read one key and lock its row.

        Raises:
            KeyNotFound: no such key.
        """
        key = await self._session.get(ApiKey, key_id, with_for_update=True)
        if key is None:
            raise KeyNotFound(key_id)
        return key

    async def page(self, *, before: UUID | None, limit: int) -> Sequence[ApiKey]:
        """Read up to ``limit`` + 1 keys, newest first; the extra one shows that there is a next page."""
        query = select(ApiKey).order_by(ApiKey.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(ApiKey.id < before)
        return (await self._session.scalars(query)).all()

    async def record_use(self, key_ids: Collection[UUID], at: datetime) -> None:
        """Store when keys were last used."""
        query = update(ApiKey).where(ApiKey.id.in_(key_ids)).values(last_used_at=at)
        await self._session.execute(query.execution_options(synchronize_session=False))
