"""Keys: make, list, replace and revoke them, and find out who a request acts for."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Row, func
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.access.model import ApiKey, Principal, Role
from domain.access.repository import ALL_KEYS, KeyRepository, KeyScope
from domain.access.secret import Proof, new_secret, proof_of
from domain.audit.model import NOBODY, Actor, new_entry
from domain.audit.repository import add_entries
from domain.batching import Batcher
from domain.db.database import Database, failed_transiently
from domain.db.pagination import Page, PageRequest
from domain.errors import DatabaseUnavailable, Invalid
from domain.projects.model import ProjectRef

#: How long a key is believed without asking PostgreSQL: a revoked one is refused after that.
CACHE_SECONDS: Final = 5.0
_MAX_CACHED: Final = 10_000
_MAX_BATCH: Final = 100
_USE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class NewKey:
    """A key that is wanted, for the project of who asks for it."""

    name: str
    role: Role
    lifetime: timedelta | None = None


class CreatedKey(NamedTuple):
    """A new key, and its text, which is shown once."""

    key: ApiKey
    text: str


class _Cached(NamedTuple):
    """Who a key stands for, None if it is not valid, until a time of the monotonic clock."""

    principal: Principal | None
    until: float


class KeyService:
    """The keys, for the API and the command line."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[bytes, _Cached] = {}
        self._reads = Batcher(self._read_batch, max_batch=_MAX_BATCH, fails_all=failed_transiently)
        self._used: set[UUID] = set()
        self._any = False

    async def authenticate(self, text: str) -> Principal | None:
        """Return who a key stands for; None if there is no such key, or it is revoked or has expired.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer, and the key was not used in the last `CACHE_SECONDS`.
        """
        proof = proof_of(text)
        if proof is None:
            return None
        principal = (self._cached(proof) or await self._reads(proof)).principal
        if principal is not None:
            self._used.add(principal.key_id)
        return principal

    async def wait_until_invalid(self, principal: Principal) -> None:
        """Wait until a key is no longer valid; it may take `CACHE_SECONDS` longer."""
        proof = principal.proof
        while True:
            await asyncio.sleep(CACHE_SECONDS / 2)
            with suppress(DatabaseUnavailable):
                if (self._cached(proof) or await self._reads(proof)).principal is None:
                    return

    def _cached(self, proof: Proof) -> _Cached | None:
        cached = self._cache.get(proof.digest)
        return None if cached is None or cached.until <= time.monotonic() else cached

    async def any(self) -> bool:
        """Return whether there has been a key. Once there has, a request without one costs no query."""
        if not self._any:
            async with self._database.transaction() as session:
                self._any = await KeyRepository(session).any()
        return self._any

    async def list_keys(self, request: PageRequest, scope: KeyScope) -> Page[ApiKey]:
        """List keys, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await KeyRepository(session).page(scope, before=before, limit=request.limit))

    async def create(self, new: NewKey, *, actor: Actor = NOBODY) -> CreatedKey:
        """Make a key."""
        async with self._database.transaction() as session:
            created = await _add(session, new, actor)
            await _record(session, "key.create", created.key, actor)
        return created

    async def rotate(
        self, key_id: UUID, *, overlap: timedelta, scope: KeyScope = ALL_KEYS, actor: Actor = NOBODY
    ) -> CreatedKey:
        """Make a key like another one, which expires when ``overlap`` has passed.

        Raises:
            KeyNotFound: no such key.
            Invalid: the key is revoked.
        """
        async with self._database.transaction() as session:
            keys = KeyRepository(session)
            old = await keys.lock(key_id, scope)
            if old.revoked_at is not None:
                raise Invalid("The key is revoked.", field="key_id")
            actor = replace(actor, project_id=old.project_id)
            created = await _add(session, NewKey(old.name, old.role), actor)
            await _record(session, "key.rotate", old, actor)
            end = datetime.now(UTC) + overlap
            old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
        return created

    async def revoke(self, key_id: UUID, *, scope: KeyScope = ALL_KEYS, actor: Actor = NOBODY) -> ApiKey:
        """Make a key invalid for good; all processes refuse it within `CACHE_SECONDS`.

        Raises:
            KeyNotFound: no such key.
        """
        async with self._database.transaction() as session:
            keys = KeyRepository(session)
            key = await keys.lock(key_id, scope)
            if key.revoked_at is None:
                key.revoked_at = func.now()
                await session.flush()
                await session.refresh(key)
                await _record(session, "key.revoke", key, replace(actor, project_id=key.project_id))
        self._cache.clear()
        return key

    async def record_use_forever(self) -> None:
        """Store once a minute which keys were used."""
        while True:
            await asyncio.sleep(_USE_SECONDS)
            with suppress(DatabaseUnavailable):
                await self.record_use()

    async def record_use(self) -> None:
        """Store which keys were used since the last call.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer; they are stored by the next call.
        """
        used = set(self._used)
        if used:
            async with self._database.transaction() as session:
                await KeyRepository(session).record_use(used, datetime.now(UTC))
            self._used -= used

    async def _read_batch(self, proofs: Sequence[Proof]) -> Sequence[_Cached]:
        until = time.monotonic() + CACHE_SECONDS  # from before the query: a revocation after it must not be missed
        async with self._database.transaction() as session:
            rows = await KeyRepository(session).valid({proof.public_id for proof in proofs})
        keys = {row.ApiKey.public_id: row for row in rows}
        found = [_Cached(_principal(keys.get(proof.public_id), proof), until) for proof in proofs]
        self._cache.update({proof.digest: cached for proof, cached in zip(proofs, found, strict=True)})
        while len(self._cache) > _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        return found


def _principal(row: Row[ApiKey, str, bool] | None, proof: Proof) -> Principal | None:
    if row is None or not hmac.compare_digest(row.ApiKey.digest, proof.digest):
        return None
    key: ApiKey = row.ApiKey
    return Principal(key.id, key.name, key.role, ProjectRef(key.project_id, row.name, row.is_limited), proof)


async def may_own_schedules(session: AsyncSession, project_id: UUID, name: str) -> bool:
    """Return whether somebody has a valid key that may have schedules in a project."""
    return await KeyRepository(session).has_valid(name, project_id, (Role.OWNER, Role.SYSTEM))


async def _record(session: AsyncSession, action: str, key: ApiKey, actor: Actor) -> None:
    await add_entries(session, [new_entry(actor, action, subject_id=key.id, subject_name=key.name)])


async def _add(session: AsyncSession, new: NewKey, actor: Actor) -> CreatedKey:
    secret = new_secret()
    expires_at = None if new.lifetime is None else datetime.now(UTC) + new.lifetime
    key = ApiKey(
        id=uuid7(),
        public_id=secret.proof.public_id,
        digest=secret.proof.digest,
        name=new.name,
        role=new.role,
        project_id=actor.project_id,
        created_by=actor.name,
        expires_at=expires_at,
    )
    return CreatedKey(await KeyRepository(session).add(key), secret.text)
