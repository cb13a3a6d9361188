"""Sessions of browsers: begun with a key, ended with it, and counted only in requests of the API's own pages."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI

from api.main import create_app
from domain.access import sessions as sessions_module
from domain.access.model import Role
from domain.access.repository import MAX_IDLE_SECONDS, MAX_SESSION_SECONDS
from domain.access.service import CACHE_SECONDS, NewKey
from domain.access.sessions import SessionService
from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.project_builders import a_project
from tests.support.http import client_of

MARK = {"X-Cistern-Session": "1"}
OWN = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
JOBS = "/api/v1/jobs"


class Clock:
    """A monotonic clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sessions_module, "time", clock)
    return clock


async def cookie_of(client: httpx.AsyncClient, key: str, **headers: str) -> str:
    """Sign in, and return the whole cookie."""
    response = await client.post("/sign-in", data={"key": key, "next": "/"}, headers=headers)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie: str = response.headers["set-cookie"]
    client.cookies.clear()
    return cookie


async def test_cookie_on_loopback_is_for_this_host_only_and_hidden_from_scripts(
    app: FastAPI, services: Services
) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    async with client_of(app, headers={}) as client:
        cookie = await cookie_of(client, key)

    assert re.fullmatch(r"cistern=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie)
    ((stored,),) = await sql(services, "SELECT digest FROM sessions")
    assert cookie.partition("=")[2].partition(";")[0].encode() not in bytes(stored)


async def test_cookie_elsewhere_needs_tls_and_no_other_host_can_set_it(services: Services) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    settings = services.settings.model_copy(update={"hosts": ("cistern.example.org",)})
    app = create_app(lambda: nullcontext(replace(services, settings=settings)))
    async with client_of(app, headers={}) as client:
        host = {"Host": "cistern.example.org"}
        cookie = await cookie_of(client, key, **host)
        token = cookie.partition("=")[2].partition(";")[0]
        answers = {
            name: (await client.get("/", headers=host | {"Cookie": f"{name}={token}"})).status_code
            for name in ("__Host-cistern", "cistern")
        }

    assert re.fullmatch(r"__Host-cistern=[\w-]{43}; HttpOnly; Path=/; SameSite=strict; Secure", cookie)
    assert answers == {"__Host-cistern": 200, "cistern": 303}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/jobs", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("/jobs", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 303),
        ("/jobs", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 303),
        (JOBS, {}, 401),
        (JOBS, MARK, 401),
        (JOBS, OWN, 401),
        (JOBS, MARK | OWN, 200),
        (JOBS, MARK | OWN | {"Sec-Fetch-Site": "same-site"}, 401),
        (JOBS, MARK | OWN | {"Sec-Fetch-Site": "none"}, 401),
        (JOBS, MARK | {"Origin": "http://localhost"}, 200),
        (JOBS, MARK | {"Origin": "http://evil.example"}, 401),
        (JOBS, MARK | {"Origin": "null"}, 401),
        (f"{JOBS}/01a0b1c2-0000-7000-8000-000000000002/events", {}, 401),
        (f"{JOBS}/01a0b1c2-0000-7000-8000-000000000002/events", OWN, 404),
        (f"{JOBS}/01a0b1c2-0000-7000-8000-000000000002/events", {"Sec-Fetch-Site": "cross-site"}, 401),
        ("/readyz", {}, 200),
    ],
)
async def test_cookie_counts_only_in_requests_of_own_pages(
    app: FastAPI, services: Services, path: str, headers: Mapping[str, str], status: int
) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    async with client_of(app, headers={}) as client:
        cookie = (await cookie_of(client, key)).partition(";")[0]

        assert (await client.get(path, headers={"Cookie": cookie, **headers})).status_code == status


async def test_change_by_a_session_is_recorded_with_its_key(app: FastAPI, services: Services) -> None:
    created = await services.keys.create(NewKey("alice", Role.OWNER))
    body = {"name": "one", "size": 1048576}
    async with client_of(app, headers={}) as client:
        cookie = (await cookie_of(client, created.text)).partition(";")[0]
        headers = {"Cookie": cookie, **MARK, **OWN}
        assert (await client.post("/api/v1/volumes", json=body, headers=headers)).status_code == 202
        assert (await client.get("/api/v1/audit", headers=headers)).json()["code"] == "role-insufficient"
        without_mark = {"Cookie": cookie, **OWN}
        assert (await client.post("/api/v1/volumes", json=body, headers=without_mark)).status_code == 401

    recorded = await sql(services, "SELECT name, key_id FROM audit_entries WHERE action = 'volume.create'")
    assert recorded == [("alice", created.key.id)]


async def test_revoked_key_ends_its_sessions_within_five_seconds(services: Services, clock: Clock) -> None:
    created = await services.keys.create(NewKey("a", Role.VIEWER))
    principal = await services.keys.authenticate(created.text)
    assert principal is not None
    token = await services.sessions.sign_in(principal)
    assert await services.sessions.authenticate(token) is not None
    await services.keys.revoke(created.key.id)
    clock.now += CACHE_SECONDS

    assert await services.sessions.authenticate(token) is None


async def test_signing_out_ends_this_session_only(services: Services) -> None:
    created = await services.keys.create(NewKey("a", Role.VIEWER))
    principal = await services.keys.authenticate(created.text)
    assert principal is not None
    first, second = [await services.sessions.sign_in(principal) for _ in range(2)]
    of_first = await services.sessions.authenticate(first)
    assert of_first is not None
    await services.sessions.sign_out(of_first)

    assert await services.sessions.authenticate(first) is None
    assert await services.sessions.authenticate(second) is not None


@pytest.mark.parametrize(
    ("column", "seconds"), [("last_used_at", MAX_IDLE_SECONDS), ("created_at", MAX_SESSION_SECONDS)]
)
async def test_session_ends_when_it_is_old_or_was_not_used(services: Services, column: str, seconds: float) -> None:
    created = await services.keys.create(NewKey("a", Role.VIEWER))
    principal = await services.keys.authenticate(created.text)
    assert principal is not None
    token = await services.sessions.sign_in(principal)
    for age, is_valid in ((seconds - 60, True), (seconds + 1, False)):
        change = f"UPDATE sessions SET {column} = now() - CAST(:age AS interval)"
        await sql(services, change, age=timedelta(seconds=age))
        other = SessionService(services.database)
        assert (await other.authenticate(token) is not None) is is_valid

    await services.sessions.sign_in(principal)
    assert await sql(services, "SELECT count(*) FROM sessions") == [(1,)], "the ended one is deleted"


async def test_use_is_stored_once_a_minute(services: Services, clock: Clock) -> None:
    created = await services.keys.create(NewKey("a", Role.VIEWER))
    principal = await services.keys.authenticate(created.text)
    assert principal is not None
    token = await services.sessions.sign_in(principal)
    stored = []
    for _ in range(3):
        await sql(services, "UPDATE sessions SET last_used_at = now() - interval '10 minutes'")
        clock.now += 50
        await services.sessions.authenticate(token)
        stored += await sql(services, "SELECT last_used_at > now() - interval '1 minute' FROM sessions")

    assert stored == [(True,), (False,), (True,)]


@pytest.mark.parametrize(
    ("wanted", "location"),
    [
        ("/jobs?status=failed", "/jobs?status=failed"),
        ("/volumes", "/volumes"),
        *((unsafe, "/") for unsafe in ("//evil.example", "https://evil.example/", "/\\evil.example", "javascript:1")),
        *((unsafe, "/") for unsafe in ("/api/v1/jobs", "/nowhere", "/jobs\r\nX-A: b", "/sign-out", "jobs")),
    ],
)
async def test_sign_in_leads_to_own_pages_only(app: FastAPI, services: Services, wanted: str, location: str) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    async with client_of(app, headers={}) as client:
        response = await client.post("/sign-in", data={"key": key, "next": wanted})

    assert (response.status_code, response.headers["location"]) == (303, location)


@pytest.mark.parametrize("form", [{}, {"key": "cst_nonsense"}, {"key": ""}, {"next": "/"}])
async def test_sign_in_without_a_valid_key_sets_no_cookie(app: FastAPI, form: dict[str, str]) -> None:
    async with client_of(app, headers={}) as client:
        response = await client.post("/sign-in", data=form)

    assert (response.status_code, "set-cookie" in response.headers) == (422, False)
    assert "This key is unknown" in response.text


async def test_form_of_another_site_neither_signs_in_nor_out(app: FastAPI, services: Services) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    async with client_of(app, headers={}) as client:
        assert (await client.post("/sign-in", data={"key": key}, headers=foreign)).status_code == 403
        cookie = (await cookie_of(client, key)).partition(";")[0]
        assert (await client.post("/sign-out", headers={"Cookie": cookie, **foreign})).status_code == 403

    assert await sql(services, "SELECT count(*) FROM sessions") == [(1,)]


async def test_new_sign_in_ends_the_session_before(app: FastAPI, services: Services) -> None:
    key = (await services.keys.create(NewKey("a", Role.VIEWER))).text
    async with client_of(app, headers={}) as client:
        first = (await cookie_of(client, key)).partition(";")[0]
        second = (await cookie_of(client, key, Cookie=first, **OWN)).partition(";")[0]

    assert first != second
    assert await sql(services, "SELECT count(*) FROM sessions") == [(1,)]


async def test_page_asks_for_a_key_and_a_script_is_told(app: FastAPI) -> None:
    async with client_of(app, headers={}) as client:
        page = await client.get("/jobs?status=failed&kind=volume.create")
        script = await client.get("/jobs", headers=MARK)

    assert (page.status_code, page.headers["location"]) == (
        303,
        "/sign-in?next=/jobs%3Fstatus%3Dfailed%26kind%3Dvolume.create",
    )
    assert (script.status_code, script.json()["code"]) == (401, "key-missing")


async def test_browser_of_a_system_key_shows_the_project_that_it_has_chosen(app: FastAPI, services: Services) -> None:
    await a_project(services, "other")
    shown = {}
    for role in (Role.SYSTEM, Role.OWNER):
        key = (await services.keys.create(NewKey(role, role))).text
        async with client_of(app, headers=OWN) as client:
            await client.post("/sign-in", data={"key": key, "next": "/"})
            for name in ("other", "gone", "x; Secure=no"):
                answer = await client.post("/project", data={"name": name})
                page = (await client.get("/settings")).text
                shown[role, name] = (answer.status_code, "Project <bdi>other</bdi>" in page)

    assert shown == {
        (Role.SYSTEM, "other"): (303, True),
        (Role.SYSTEM, "gone"): (303, False),
        (Role.SYSTEM, "x; Secure=no"): (303, False),
        **{(Role.OWNER, name): (403, False) for name in ("other", "gone", "x; Secure=no")},
    }


async def test_project_is_not_chosen_by_another_site(app: FastAPI, services: Services) -> None:
    await a_project(services, "other")
    key = (await services.keys.create(NewKey("a", Role.SYSTEM))).text
    async with client_of(app, headers=OWN) as client:
        await client.post("/sign-in", data={"key": key, "next": "/"})
        answer = await client.post("/project", data={"name": "other"}, headers={"Sec-Fetch-Site": "cross-site"})

        assert answer.status_code == 403
        assert "Project <bdi>default</bdi>" in (await client.get("/settings")).text
