"""Sessions of browsers: a key is exchanged for a token, which the browser sends as a cookie instead of the key."""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from sqlalchemy import Row

from domain.access.model import ApiKey, Principal
from domain.access.repository import SessionRepository
from domain.access.secret import Proof
from domain.access.service import CACHE_SECONDS
from domain.batching import Batcher
from domain.db.database import Database, failed_transiently
from domain.errors import DatabaseUnavailable
from domain.projects.model import ProjectRef

_MAX_CACHED: Final = 10_000
_MAX_BATCH: Final = 100
#: A use is stored if the last one that was stored is older, in seconds.
_USE_SECONDS: Final = 60.0
_TOKEN_BYTES: Final = 32
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class _Cached(NamedTuple):
    """Who a session acts for, None if it is not valid, until a time of the monotonic clock."""

    principal: Principal | None
    until: float


class SessionService:
    """The sessions of browsers. A session acts for its key, and ends with it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[bytes, _Cached] = {}
        self._reads = Batcher(self._read_batch, max_batch=_MAX_BATCH, fails_all=failed_transiently)
        #: When the use of each session was last stored, by the monotonic clock.
        self._stored: dict[bytes, float] = {}

    async def sign_in(self, principal: Principal) -> str:
        """Begin a session for who has sent a key, and return its token."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        async with self._database.transaction() as session:
            await SessionRepository(session).add(_digest(token), principal.key_id)
        return token

    async def sign_out(self, principal: Principal) -> None:
        """End the session of a request; other processes refuse it within `CACHE_SECONDS`."""
        if principal.session is not None:
            async with self._database.transaction() as session:
                await SessionRepository(session).delete(principal.session)
            self._cache.clear()

    async def authenticate(self, token: str) -> Principal | None:
        """Return who a session acts for; None if there is none, it has ended, or its key is not valid any more.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer, and the session was not used in the last `CACHE_SECONDS`.
        """
        if not _TOKEN.fullmatch(token):
            return None
        return (await self._look_up(_digest(token))).principal

    async def wait_until_invalid(self, principal: Principal) -> None:
        """Wait until a session has ended; it may take `CACHE_SECONDS` longer. Who waits uses it."""
        while principal.session is not None:
            await asyncio.sleep(CACHE_SECONDS / 2)
            with suppress(DatabaseUnavailable):
                if (await self._look_up(principal.session)).principal is None:
                    return

    async def _look_up(self, digest: bytes) -> _Cached:
        cached = self._cache.get(digest)
        if cached is None or cached.until <= time.monotonic():
            return await self._reads(digest)
        return cached

    async def _read_batch(self, digests: Sequence[bytes]) -> Sequence[_Cached]:
        now = time.monotonic()  # from before the query: a revocation after it must not be missed
        async with self._database.transaction() as session:
            sessions = SessionRepository(session)
            rows = {row.digest: row for row in await sessions.valid(digests)}
            unstored = [digest for digest in rows if self._stored.get(digest, -_USE_SECONDS) <= now - _USE_SECONDS]
            if unstored:
                await sessions.record_use(unstored)
        self._stored.update(dict.fromkeys(unstored, now))
        found = [_Cached(_principal(rows.get(digest)), now + CACHE_SECONDS) for digest in digests]
        self._cache.update(dict(zip(digests, found, strict=True)))
        for remembered in (self._cache, self._stored):
            while len(remembered) > _MAX_CACHED:
                del remembered[next(iter(remembered))]
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _principal(row: Row[bytes, ApiKey, str, bool] | None) -> Principal | None:
    if row is None:
        return None
    key: ApiKey = row.ApiKey
    project = ProjectRef(key.project_id, row.name, row.is_limited)
    return Principal(key.id, key.name, key.role, project, Proof(key.public_id, key.digest), row.digest)
