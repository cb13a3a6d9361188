"""Every route asks for a key whose role is sufficient; what no table mentions is refused."""

import re
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from api.access import PAGES, ROUTES
from api.main import create_app
from api.v1.hot_routes import _ID, HOT_ROUTES
from domain.access.model import Role
from domain.access.secret import new_secret
from domain.jobs.kinds import JobKind
from domain.jobs.states import JobStatus
from tests.support.http import client_of
from tests.unit.fake_keys import SECRETS, bearer
from tests.unit.fakes import NOON, FakeServices, job_row

V1 = "/api/v1"
SOME_ID = str(UUID(int=1))


def served_routes(app: FastAPI) -> set[tuple[str, str]]:
    """Return method and path of all routes: of the document, of the application, and of the hot table."""
    documented = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    # FastAPI keeps the routes of an included router in contexts.
    own = [route for route in app.routes if isinstance(route, Route)]
    routers: list[Any] = [router for router in app.routes if router not in own]
    included = [route for router in routers for route in router.effective_route_contexts()]
    added = {(method, route.path) for route in (*own, *included) for method in route.methods or () if method != "HEAD"}
    hot = {(method, path.pattern.replace(_ID, "{id}")) for method, path, _ in HOT_ROUTES}
    return {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in documented | added | hot}


def listed_routes() -> set[tuple[str, str]]:
    return {(method, path) for path, roles in ROUTES.items() for method in roles}


def test_table_has_exactly_the_routes_that_are_served() -> None:
    assert served_routes(create_app(FakeServices().factory())) == listed_routes()


def test_roles_follow_from_what_a_route_does() -> None:
    """The table is written by hand; this is the rule behind it, so that no row is too weak unnoticed."""
    for path, roles in ROUTES.items():
        for method, role in roles.items():
            if path in PAGES:
                expected = {"/sign-in": None, "/sign-out": None, "/project": Role.SYSTEM}.get(path, Role.VIEWER)
            elif not path.startswith("/api/"):
                expected = None
            elif path.startswith(f"{V1}/audit") or (path.startswith(f"{V1}/projects") and method != "GET"):
                expected = Role.SYSTEM
            elif path.startswith((f"{V1}/keys", f"{V1}/webhooks")):
                expected = Role.OWNER
            elif method == "GET" or (method, path) == ("POST", f"{V1}/volumes/expand"):
                expected = Role.VIEWER
            elif "/attachments" in path:
                expected = Role.OPERATOR
            elif (
                method == "DELETE"
                or "/schedules" in path
                or path.endswith(("/restore", "/volumes/expand", "/volumes/snapshots", "/jobs/cancel", "/jobs/retry"))
            ):
                expected = Role.OWNER
            else:
                expected = Role.OPERATOR
            assert role is expected, (method, path)


def spellings(path: str) -> list[str]:
    """Return a path as clients may write it: plain, and with characters encoded that need not be."""
    path = path.replace("{}", SOME_ID)
    if path == "/":
        return ["/", "/?"]
    first = path.split("/")[-1][:1]
    return [path, path[: -len(path.split("/")[-1])] + f"%{ord(first):02x}" + path.split("/")[-1][1:]]


MATRIX = [
    pytest.param(method, path, roles[method], id=f"{method} {path}")
    for path, roles in ROUTES.items()
    for method in roles
]


@pytest.mark.parametrize(("method", "path", "needed"), MATRIX)
async def test_route_is_open_to_sufficient_roles_only(
    client: httpx.AsyncClient, method: str, path: str, needed: Role | None
) -> None:
    refused: dict[Role | None, list[int]] = {}
    for written in spellings(path):
        for role in (None, *Role):
            response = await send(client, method, written, {} if role is None else bearer(role))
            to_sign_in = path in PAGES and path != "/sign-out" and leads_to_sign_in(response)
            status = 401 if to_sign_in else response.status_code
            if status in (401, 403):
                refused.setdefault(role, []).append(status)

    expected = {role: [403, 403] for role in Role if needed is not None and not role.includes(needed)}
    assert refused == (expected if needed is None else {None: [401, 401]} | expected)


def leads_to_sign_in(response: httpx.Response) -> bool:
    return response.status_code == 303 and response.headers["location"].startswith("/sign-in")


async def send(client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    request = client.build_request(method, path)
    del request.headers["Authorization"]
    request.headers.update(headers)
    return await client.send(request)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/sign-in/x", f"{V1}", f"{V1}/volumes/", f"{V1}/volumes/x/y", "/api/v2/volumes", "/nowhere//"]
)
@pytest.mark.parametrize("headers", [{}, bearer(Role.SYSTEM)], ids=["without key", "with key"])
async def test_path_that_no_row_has_is_not_found(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    response = await send(client, "GET", path, headers)

    assert (response.status_code, response.json()["code"]) == (404, "not-found")


async def test_route_that_is_not_in_the_table_is_not_reached(fake: FakeServices) -> None:
    app = create_app(fake.factory())
    app.add_api_route("/forgotten", lambda: "secret", methods=["GET"])
    async with client_of(app) as client:
        assert (await client.get("/forgotten")).status_code == 404


async def test_method_that_a_path_does_not_have_is_told_to_its_users(
    client: httpx.AsyncClient,
) -> None:
    assert (await send(client, "PUT", f"{V1}/volumes", {})).status_code == 401
    assert (await send(client, "PUT", "/healthz", {})).status_code == 405
    response = await send(client, "PUT", f"{V1}/volumes", bearer(Role.VIEWER))
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "key-missing"),
        ("", "key-invalid"),
        ("Bearer", "key-invalid"),
        ("Bearer nonsense", "key-invalid"),
        (f"Bearer {new_secret().text}", "key-invalid"),
        (f"Basic {SECRETS[Role.SYSTEM].text}", "key-invalid"),
        (f"Bearer {SECRETS[Role.SYSTEM].text[:-1]}", "key-invalid"),
        (f"Bearer {SECRETS[Role.SYSTEM].text}a", "key-invalid"),
    ],
    ids=["none", "empty", "no key", "nonsense", "unknown", "other scheme", "too short", "too long"],
)
async def test_request_without_a_valid_key_is_unauthorized(
    client: httpx.AsyncClient, authorization: str | None, code: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await send(client, "GET", f"{V1}/volumes", headers)

    assert (response.status_code, response.json()["code"]) == (401, code)
    assert response.headers["www-authenticate"] == 'Bearer realm="cistern"'
    assert "cst_" not in response.json()["detail"].removeprefix("Send a key: `Authorization: Bearer cst_")


async def test_two_keys_are_none(client: httpx.AsyncClient) -> None:
    request = client.build_request("GET", f"{V1}/volumes")
    request.headers = httpx.Headers([*request.headers.raw, (b"authorization", b"Bearer x")])

    assert (await client.send(request)).json()["code"] == "key-invalid"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_scheme_is_read_as_http_defines_it(client: httpx.AsyncClient, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {SECRETS[Role.VIEWER].text}"}

    assert (await send(client, "GET", f"{V1}/volumes", headers)).status_code == 200


async def test_installation_without_keys_says_how_to_make_one(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.keys.rows = {}
    response = await send(client, "GET", f"{V1}/volumes", {})

    assert (response.status_code, response.json()["code"]) == (401, "no-keys")
    assert "cistern keys create" in response.json()["detail"]


async def test_key_that_cannot_be_looked_up_is_a_503(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.keys.database_is_up = False

    response = await client.get(f"{V1}/volumes")

    assert (response.status_code, response.json()["code"]) == (503, "database-unavailable")
    assert (await send(client, "GET", "/healthz", {})).status_code == 200
    refused = await client.post(f"{V1}/volumes", json={"name": "a", "size": 4096})
    assert (refused.status_code, "may have been accepted" in refused.json()["detail"]) == (503, False)


async def test_refusal_names_both_roles(client: httpx.AsyncClient) -> None:
    response = await send(client, "DELETE", f"{V1}/volumes/{SOME_ID}", bearer(Role.OPERATOR))

    assert (response.status_code, response.json()["code"]) == (403, "role-insufficient")
    assert response.json()["detail"] == "This needs the role 'owner'; the key 'operator' has 'operator'."


@pytest.mark.parametrize("role", Role)
async def test_bulk_expansion_needs_an_owner_unless_it_is_a_dry_run(client: httpx.AsyncClient, role: Role) -> None:
    body = {"percent": 10}
    real = await client.post(f"{V1}/volumes/expand", json=body, headers=bearer(role))
    dry = await client.post(f"{V1}/volumes/expand", json=body | {"dry_run": True}, headers=bearer(role))

    assert (real.status_code, dry.status_code) == (202 if role.includes(Role.OWNER) else 403, 200)


@pytest.mark.parametrize("kind", [*JobKind, "somebody.elses"])
async def test_retry_needs_the_role_of_what_is_retried(
    fake: FakeServices, client: httpx.AsyncClient, kind: str
) -> None:
    operators = {"volume.create", "volume.clone", "volume.expand", "snapshot.take", "snapshot.clone"}
    operators |= {"volume.attach", "volume.detach"}
    job = fake.jobs.add(job_row(kind, status=JobStatus.FAILED, finished_at=NOON))

    response = await client.post(f"{V1}/jobs/{job.id}/retry", headers=bearer(Role.OPERATOR))

    assert (response.status_code == 403) == (kind not in operators)


async def test_readiness_shows_the_state_of_the_installation_to_system_keys_only(client: httpx.AsyncClient) -> None:
    shown = {}
    for role in (None, *Role):
        ready = (await send(client, "GET", "/readyz", {} if role is None else bearer(role))).json()
        assert ready["status"] == "ready"
        shown[role] = ready["stats"] is not None and ready["backends"] is not None

    assert [role for role in shown if shown[role]] == [Role.SYSTEM]


async def test_keys_are_created_listed_replaced_and_revoked(client: httpx.AsyncClient) -> None:
    new = {"name": "backup", "role": "viewer", "expires_in_days": 7}
    created = (await client.post(f"{V1}/keys", json=new)).json()
    as_backup = {"Authorization": f"Bearer {created['key']}"}
    assert (await send(client, "GET", f"{V1}/volumes", as_backup)).status_code == 200
    assert (created["created_by"], created["expires_at"]) == ("system", "2026-02-07T12:00:00Z")

    listed = (await client.get(f"{V1}/keys")).json()["items"][0]
    assert listed == {name: value for name, value in created.items() if name != "key"}

    replaced = (await client.post(f"{V1}/keys/{created['id']}/rotate", json={})).json()
    assert (replaced["name"], replaced["role"], replaced["key"] != created["key"]) == ("backup", "viewer", True)

    revoked = await client.delete(f"{V1}/keys/{created['id']}")
    assert (revoked.status_code, revoked.json()["revoked_at"] is None) == (200, False)
    assert (await send(client, "GET", f"{V1}/volumes", as_backup)).json()["code"] == "key-invalid"
    assert (await client.delete(f"{V1}/keys/{SOME_ID}")).json()["code"] == "key-not-found"


@pytest.mark.parametrize(
    "body",
    [
        *({"role": "viewer"}, {"name": "a"}, {"name": "a", "role": "admin"}, {"name": "", "role": "viewer"}),
        *({"name": "a b", "role": "viewer"}, {"name": "a" * 65, "role": "viewer"}),
        {"name": "a", "role": "viewer", "expires_in_days": 0},
    ],
)
async def test_invalid_key_is_refused(fake: FakeServices, client: httpx.AsyncClient, body: dict[str, object]) -> None:
    before = len(fake.keys.rows)

    assert (await client.post(f"{V1}/keys", json=body)).status_code == 422
    assert len(fake.keys.rows) == before
