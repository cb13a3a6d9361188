"""Keys in PostgreSQL: believed for five seconds, then looked up; their texts are not stored."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest

from domain.access import service as service_module
from domain.access.model import Role
from domain.access.repository import ALL_KEYS, KeyRepository
from domain.access.secret import _checksum, new_secret, proof_of
from domain.access.service import CACHE_SECONDS, KeyService, NewKey
from domain.audit.model import Actor
from domain.db.pagination import PageRequest
from domain.errors import DatabaseUnavailable, Invalid, KeyNotFound
from domain.services import Services
from tests.support.databases import run

BACKUP = NewKey("backup", Role.OPERATOR)


class Clock:
    """A monotonic clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service_module, "time", clock)
    return clock


async def test_key_stands_for_its_user(services: Services) -> None:
    created = await services.keys.create(BACKUP, actor=Actor("admin"))

    principal = await services.keys.authenticate(created.text)
    assert principal is not None
    assert (principal.key_id, principal.name, principal.role) == (created.key.id, "backup", Role.OPERATOR)
    assert await services.keys.authenticate(new_secret().text) is None
    assert await services.keys.authenticate("nonsense") is None


async def test_public_id_alone_is_no_key(services: Services) -> None:
    """Somebody who knows the id of a key makes a text with it whose checksum is right."""
    created = await services.keys.create(BACKUP)
    forged = _with_id(created.key.public_id)

    assert proof_of(forged) is not None
    assert await services.keys.authenticate(forged) is None


def _with_id(public_id: str) -> str:
    body = f"cst_{public_id}_{'a' * 43}"
    return body + _checksum(body)


async def test_text_of_a_key_is_nowhere_in_the_database(services: Services) -> None:
    created = await services.keys.create(BACKUP)
    secret = created.text[15:]
    rows = await asyncio.to_thread(run, services.settings.database_url, "SELECT api_keys::text FROM api_keys")

    assert len(rows) == 2
    assert all(secret not in row[0] for row in rows)


async def test_revoked_key_is_refused_by_other_processes_within_five_seconds(services: Services, clock: Clock) -> None:
    other = KeyService(services.database)
    created = await services.keys.create(BACKUP)
    assert await other.authenticate(created.text)
    await services.keys.revoke(created.key.id)

    assert await services.keys.authenticate(created.text) is None
    assert await other.authenticate(created.text), "the other process believes it for a while"
    clock.now += CACHE_SECONDS
    assert await other.authenticate(created.text) is None


async def test_expired_key_is_refused(services: Services, clock: Clock) -> None:
    created = await services.keys.create(NewKey("a", Role.VIEWER, timedelta(days=1)))
    assert await services.keys.authenticate(created.text)
    past = f"UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = '{created.key.id}'"
    await asyncio.to_thread(run, services.settings.database_url, past)
    clock.now += CACHE_SECONDS

    assert await services.keys.authenticate(created.text) is None


async def test_replaced_key_is_valid_until_the_overlap_has_passed(services: Services, clock: Clock) -> None:
    old = await services.keys.create(BACKUP)
    new = await services.keys.rotate(old.key.id, overlap=timedelta(hours=1), actor=Actor("admin"))
    at_once = await services.keys.rotate(new.key.id, overlap=timedelta(), actor=Actor("admin"))
    clock.now += CACHE_SECONDS

    assert (new.key.name, new.key.role, new.key.created_by) == ("backup", Role.OPERATOR, "admin")
    valid = [await services.keys.authenticate(key.text) is not None for key in (old, new, at_once)]
    assert valid == [True, False, True]


async def test_revoked_key_cannot_be_replaced(services: Services) -> None:
    created = await services.keys.create(BACKUP)
    await services.keys.revoke(created.key.id)

    with pytest.raises(Invalid, match="revoked"):
        await services.keys.rotate(created.key.id, overlap=timedelta())


async def test_second_revocation_keeps_the_time_of_the_first(services: Services) -> None:
    created = await services.keys.create(BACKUP)
    first = (await services.keys.revoke(created.key.id)).revoked_at

    assert (await services.keys.revoke(created.key.id)).revoked_at == first
    with pytest.raises(KeyNotFound):
        await services.keys.revoke(uuid4())


async def test_many_requests_with_one_key_cost_one_query(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await services.keys.create(BACKUP)
    queries = []
    read = KeyRepository.valid

    async def counted(self: KeyRepository, public_ids: set[str]) -> object:
        queries.append(public_ids)
        return await read(self, public_ids)

    monkeypatch.setattr(KeyRepository, "valid", counted)
    for _ in range(3):
        await asyncio.gather(*(services.keys.authenticate(created.text) for _ in range(64)))

    assert len(queries) <= 2  # one that is sent at once, one for those that came meanwhile
    assert set().union(*queries) == {created.key.public_id}


async def test_nonsense_costs_no_query(services: Services) -> None:
    without_database = KeyService(services.database)
    await services.database.close()

    assert await without_database.authenticate("cst_" + "a" * 60) is None


async def test_known_key_is_believed_while_postgresql_is_away(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await services.keys.create(BACKUP)
    await services.keys.authenticate(created.text)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(KeyRepository, "valid", fail)
    assert await services.keys.authenticate(created.text)
    clock.now += CACHE_SECONDS
    with pytest.raises(DatabaseUnavailable):
        await services.keys.authenticate(created.text)


async def test_memory_for_keys_is_limited(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_MAX_CACHED", 3)
    for _ in range(5):
        await services.keys.authenticate(new_secret().text)

    assert len(services.keys._cache) == 3


async def test_last_use_of_a_key_is_recorded(services: Services) -> None:
    used, unused = [await services.keys.create(BACKUP) for _ in range(2)]
    await services.keys.authenticate(used.text)
    await services.keys.record_use()
    await services.keys.record_use()  # nothing new

    page = await services.keys.list_keys(PageRequest(scope="keys"), ALL_KEYS)
    last = {key.id: key.last_used_at is not None for key in page.items}
    assert (last[used.key.id], last[unused.key.id]) == (True, False)


async def test_job_is_created_by_the_user_of_the_key(services: Services, client: httpx.AsyncClient) -> None:
    created = await services.keys.create(BACKUP)
    headers = {"Authorization": f"Bearer {created.text}", "X-Cistern-Caller": "somebody else"}

    job = (await client.post("/api/v1/volumes", json={"name": "a", "size": 1}, headers=headers)).json()

    assert job["created_by"] == "backup"


async def test_wait_for_the_end_of_a_key_ends_when_it_is_revoked_elsewhere(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "CACHE_SECONDS", 0.1)
    other = KeyService(services.database)
    created = await services.keys.create(BACKUP)
    principal = await other.authenticate(created.text)
    assert principal is not None
    waiting = asyncio.create_task(other.wait_until_invalid(principal))
    await services.keys.authenticate(created.text)
    assert not waiting.done()

    await services.keys.revoke(created.key.id)

    await asyncio.wait_for(waiting, 10)


async def test_requests_without_a_key_cost_no_query_once_there_is_one(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await services.keys.any()

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(KeyRepository, "any", fail)
    assert await services.keys.any()
