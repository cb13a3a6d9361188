"""A fake of the service of keys: one key for each role, and those that a test creates."""

import asyncio
from dataclasses import dataclass, field, replace
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.access.model import ApiKey, Principal, Role
from domain.access.secret import new_secret, proof_of
from domain.access.service import CreatedKey, NewKey
from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import Page, PageRequest
from domain.errors import DatabaseUnavailable, KeyNotFound
from domain.projects.model import ProjectRef
from tests.support import keys
from tests.unit.fake_volumes import NOON

#: A key for each role; that of the system is the one that the tests' clients send.
SECRETS = {role: new_secret() for role in Role} | {Role.SYSTEM: keys.SECRET}


def bearer(role: Role) -> dict[str, str]:
    """Return the header that sends the key with a role."""
    return {"Authorization": f"Bearer {SECRETS[role].text}"}


@dataclass
class FakeKeys:
    """Keys in memory."""

    rows: dict[str, ApiKey] = field(default_factory=dict)
    database_is_up: bool = True

    def __post_init__(self) -> None:
        for role, secret in SECRETS.items():
            self.rows[secret.proof.public_id] = _row(NewKey(role.value, role), secret.proof.public_id)

    async def authenticate(self, text: str) -> Principal | None:
        """Return who a key stands for."""
        if not self.database_is_up:
            raise DatabaseUnavailable
        proof = proof_of(text)
        row = self.rows.get(proof.public_id) if proof else None
        if proof is None or row is None or row.revoked_at is not None:
            return None
        return Principal(row.id, row.name, row.role, ProjectRef(DEFAULT_PROJECT, "default", is_limited=False), proof)

    async def wait_until_invalid(self, principal: Principal) -> None:
        """Wait for ever: no test of a route revokes a key meanwhile."""
        await asyncio.Event().wait()

    async def any(self) -> bool:
        """Return whether there is a key."""
        return bool(self.rows)

    async def create(self, new: NewKey, *, actor: Actor) -> CreatedKey:
        """Make a key."""
        secret = new_secret()
        public_id = secret.proof.public_id
        row = self.rows[public_id] = _row(new, public_id, created_by=actor.name)
        return CreatedKey(row, secret.text)

    async def rotate(self, key_id: UUID, *, overlap: object, scope: object, actor: Actor) -> CreatedKey:
        """Make a key like another one."""
        old = self._get(key_id)
        return await self.create(NewKey(old.name, old.role), actor=actor)

    async def revoke(self, key_id: UUID, *, scope: object, actor: Actor) -> ApiKey:
        """Make a key invalid."""
        row = self._get(key_id)
        row.revoked_at = NOON
        return row

    async def list_keys(self, request: PageRequest, _: object) -> Page[ApiKey]:
        """List all keys."""
        return request.page(sorted(self.rows.values(), key=lambda row: row.id, reverse=True))

    async def record_use_forever(self) -> None:
        """Do nothing."""

    def _get(self, key_id: UUID) -> ApiKey:
        for row in self.rows.values():
            if row.id == key_id:
                return row
        raise KeyNotFound(key_id)


@dataclass
class FakeSessions:
    """Sessions in memory, by their tokens."""

    keys: FakeKeys
    principals: dict[str, Principal] = field(default_factory=dict)

    async def sign_in(self, principal: Principal) -> str:
        """Begin a session."""
        token = f"token-{len(self.principals)}"
        self.principals[token] = replace(principal, session=token.encode())
        return token

    async def sign_out(self, principal: Principal) -> None:
        """End a session."""
        self.principals = {token: one for token, one in self.principals.items() if one.session != principal.session}

    async def authenticate(self, token: str) -> Principal | None:
        """Return who a session acts for."""
        if not self.keys.database_is_up:
            raise DatabaseUnavailable
        return self.principals.get(token)

    async def wait_until_invalid(self, principal: Principal) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


def _row(new: NewKey, public_id: str, *, created_by: str | None = None) -> ApiKey:
    return ApiKey(
        id=uuid7(),
        public_id=public_id,
        digest=b"",
        name=new.name,
        role=new.role,
        project_id=DEFAULT_PROJECT,
        created_by=created_by,
        created_at=NOON,
        expires_at=None if new.lifetime is None else NOON + new.lifetime,
        revoked_at=None,
        last_used_at=None,
    )
