"""Requests for foreign hosts, and those that pages of other sites make a browser send, are refused."""

from collections.abc import Sequence
from uuid import UUID

import httpx
import pytest

from tests.unit.fakes import FakeServices

VOLUME = {"name": "a", "size": "1MiB"}
EVIL = "http://evil.example"


async def send(
    client: httpx.AsyncClient, method: str, path: str, headers: Sequence[tuple[str, str]] = (), json: object = None
) -> httpx.Response:
    request = client.build_request(method, path, json=json)
    if any(name == "Host" for name, _ in headers):
        del request.headers["Host"]
    request.headers = httpx.Headers([*request.headers.raw, *((n.encode(), v.encode()) for n, v in headers)])
    return await client.send(request)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"),
        *("cistern.example.org", "Cistern.Example.org:80"),
    ],
)
async def test_own_hosts_are_served(client: httpx.AsyncClient, host: str) -> None:
    assert (await send(client, "GET", "/healthz", [("Host", host)])).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:localhost",
        ),
        *("localhost:8000:evil", "evil@localhost", "localhost.", "::1", "[::2]", "10.0.0.5", "localhost, evil.example"),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/api/v1/volumes", "/nowhere"])
async def test_foreign_hosts_are_refused_before_any_route(client: httpx.AsyncClient, host: str, path: str) -> None:
    response = await send(client, "GET", path, [("Host", host)])

    assert (response.status_code, response.json()["code"]) == (421, "host-not-allowed")
    assert "CISTERN_HOSTS" in response.json()["detail"]


@pytest.mark.parametrize("hosts", [[""], ["localhost", "localhost"], ["localhost", "evil.example"]])
async def test_request_without_exactly_one_host_is_refused(client: httpx.AsyncClient, hosts: list[str]) -> None:
    response = await send(client, "GET", "/healthz", [("Host", host) for host in hosts])

    assert (response.status_code, response.json()["code"]) == (400, "host-missing")


@pytest.mark.parametrize(
    "headers",
    [
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost")],
        [("Origin", EVIL)],
        [("Origin", "null")],
        [("Origin", "")],
        [("Origin", "http://localhost:8000")],
        [("Origin", "http://localhost.evil.example")],
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/volumes"),
        ("POST", "/api/v0/volumes/expand"),
        ("POST", "/api/v1/volumes/expand"),
        ("DELETE", f"/api/v1/volumes/{UUID(int=1)}"),
        ("PATCH", f"/api/v1/volumes/{UUID(int=1)}"),
    ],
)
async def test_page_of_another_site_changes_nothing(
    fake: FakeServices, client: httpx.AsyncClient, headers: list[tuple[str, str]], method: str, path: str
) -> None:
    response = await send(client, method, path, headers, json=VOLUME if path.endswith("volumes") else None)

    assert (response.status_code, response.json()["code"]) == (403, "cross-site")
    assert not fake.jobs.rows


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Sec-Fetch-Site", "same-origin")],
        [("Sec-Fetch-Site", "none")],
        [("Origin", "http://localhost")],
        [("Origin", "https://LOCALHOST")],
    ],
)
async def test_clients_and_own_pages_may_change_things(
    client: httpx.AsyncClient, headers: list[tuple[str, str]]
) -> None:
    assert (await send(client, "POST", "/api/v1/volumes", headers, json=VOLUME)).status_code == 202


async def test_page_of_another_site_may_link_to_what_changes_nothing(client: httpx.AsyncClient) -> None:
    assert (await send(client, "GET", "/healthz", [("Sec-Fetch-Site", "cross-site")])).status_code == 200


@pytest.mark.parametrize("name", ["Sec-Fetch-Site", "Origin"])
async def test_header_of_a_browser_that_is_given_twice_is_of_another_site(client: httpx.AsyncClient, name: str) -> None:
    value = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}[name]
    response = await send(
        client, "POST", "/api/v1/volumes", [("Host", "localhost"), (name, value), (name, value)], VOLUME
    )

    assert (response.status_code, response.json()["code"]) == (403, "cross-site")
