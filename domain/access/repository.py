"""Queries on the table of keys. Takes a session, never commits."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Row, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.access.model import ApiKey, Role, Session
from domain.db.sql import from_now
from domain.errors import KeyNotFound
from domain.projects.model import Project

#: How long a session lasts, in seconds: in all, and without a request.
MAX_SESSION_SECONDS: Final = 8 * 3600.0
MAX_IDLE_SECONDS: Final = 30 * 60.0


@dataclass(frozen=True)
class KeyScope:
    """The keys that somebody manages: those of one project, or all (None); with system keys or without."""

    project_id: UUID | None = None
    with_system: bool = True

    def conditions(self) -> Iterable[ColumnElement[bool]]:
        """Return the conditions for their rows."""
        if self.project_id is not None:
            yield ApiKey.project_id == self.project_id
        if not self.with_system:
            yield ApiKey.role != Role.SYSTEM


ALL_KEYS = KeyScope()


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

    async def valid(self, public_ids: Collection[str]) -> Sequence[Row[ApiKey, str, bool]]:
        """Read the keys with these public ids that are neither revoked nor expired.

        Each row has the ``ApiKey``, the ``name`` of its project, and whether that ``is_limited``.
        """
        query = (
            select(ApiKey, Project.name, Project.is_limited)
            .join(Project, Project.id == ApiKey.project_id)
            .where(ApiKey.public_id.in_(public_ids), _is_valid())
        )
        return (await self._session.execute(query)).all()

    async def has_valid(self, name: str, project_id: UUID, roles: Collection[Role]) -> bool:
        """Return whether somebody has a valid key for a project, with one of these roles."""
        of_project = or_(ApiKey.project_id == project_id, ApiKey.role == Role.SYSTEM)
        query = select(exists().where(ApiKey.name == name, ApiKey.role.in_(roles), of_project, _is_valid()))
        return bool(await self._session.scalar(query))

    async def lock(self, key_id: UUID, scope: KeyScope) -> ApiKey:
        """Read one key and lock its row.

        Raises:
            KeyNotFound: no such key.
        """
        query = select(ApiKey).where(ApiKey.id == key_id, *scope.conditions()).with_for_update()
        key = await self._session.scalar(query)
        if key is None:
            raise KeyNotFound(key_id)
        return key

    async def page(self, scope: KeyScope, *, before: UUID | None, limit: int) -> Sequence[ApiKey]:
        """Read up to ``limit`` + 1 keys, newest first; the extra one shows that there is a next page."""
        query = select(ApiKey).where(*scope.conditions()).order_by(ApiKey.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(ApiKey.id < before)
        return (await self._session.scalars(query)).all()

    async def record_use(self, key_ids: Collection[UUID], at: datetime) -> None:
        """Store when keys were last used."""
        query = update(ApiKey).where(ApiKey.id.in_(key_ids)).values(last_used_at=at)
        await self._session.execute(query.execution_options(synchronize_session=False))


class SessionRepository:
    """The table of sessions, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, digest: bytes, key_id: UUID) -> None:
        """Insert a new session, and delete those that have ended: the table has no more rows than people sign in."""
        await self._session.execute(delete(Session).where(~_is_open()))
        self._session.add(Session(digest=digest, key_id=key_id))

    async def valid(self, digests: Collection[bytes]) -> Sequence[Row[bytes, ApiKey, str, bool]]:
        """Read the sessions with these digests that are open, and whose key is neither revoked nor expired.

        Each row has the ``digest``, the ``ApiKey``, the ``name`` of its project, and whether that ``is_limited``.
        """
        query = (
            select(Session.digest, ApiKey, Project.name, Project.is_limited)
            .join(ApiKey, ApiKey.id == Session.key_id)
            .join(Project, Project.id == ApiKey.project_id)
            .where(Session.digest.in_(digests), _is_open(), _is_valid())
        )
        return (await self._session.execute(query)).all()

    async def record_use(self, digests: Collection[bytes]) -> None:
        """Store that sessions are used now; those that have ended stay so."""
        query = update(Session).where(Session.digest.in_(digests), _is_open()).values(last_used_at=func.now())
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def delete(self, digest: bytes) -> None:
        """Delete a session, if there is one."""
        query = delete(Session).where(Session.digest == digest)
        await self._session.execute(query.execution_options(synchronize_session=False))


def _is_open() -> ColumnElement[bool]:
    return (Session.created_at > from_now(-MAX_SESSION_SECONDS)) & (Session.last_used_at > from_now(-MAX_IDLE_SECONDS))


def _is_valid() -> ColumnElement[bool]:
    return ApiKey.revoked_at.is_(None) & or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
