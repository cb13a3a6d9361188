"""Bodies and queries of nonsense: they are refused by their size or number of elements, before each is looked at."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.body_limits import max_body_kib
from api.main import create_app
from tests.unit.fakes import FakeServices

V1 = "/api/v1"
VOLUMES, EXPAND, SCHEDULES = f"{V1}/volumes", f"{V1}/volumes/expand", f"{V1}/schedules"
VOLUME = {"name": "a", "size": "1MiB"}
SCHEDULE = {"name": "a", "cron": "* * * * *", "action": "bulk.expand"}
JSON = {"Content-Type": "application/json"}


def numbered(count: int, prefix: str = "member") -> dict[str, Any]:
    return {f"{prefix}{number}": 1 for number in range(count)}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        pytest.param(VOLUMES, VOLUME | numbered(63), "body", id="unknown members"),
        pytest.param(VOLUMES, VOLUME | {"labels": numbered(65, "!")}, "labels", id="wrong labels"),
        pytest.param(VOLUMES, VOLUME | {"autogrow": numbered(65)}, "autogrow", id="members of a policy"),
        pytest.param(EXPAND, {"by": 1, "ids": ["x"] * 10_001}, "ids", id="wrong ids"),
        pytest.param(EXPAND, {"by": 1} | numbered(64), "body", id="unknown members beside ids"),
        pytest.param(SCHEDULES, SCHEDULE | {"params": numbered(65)}, "params", id="members of params"),
    ],
)
async def test_elements_are_counted_before_any_of_them_is_looked_at(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = await client.post(path, json=body)

    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["field"], error["code"]) == (field, "too-long")
    assert "more than the maximum of" in error["detail"]


async def test_of_wrong_ids_the_first_is_reported(client: httpx.AsyncClient) -> None:
    response = await client.post(EXPAND, json={"by": 1, "ids": [str(UUID(int=1)), *["x"] * 9_000]})

    assert [error["field"] for error in response.json()["errors"]] == ["ids.1"]


@pytest.mark.parametrize(
    ("query", "field"),
    [("&".join(f"m{number}=" for number in range(65)), "query"), ("label=!&" * 65, "label")],
    ids=["unknown parameters", "labels"],
)
async def test_parameters_are_counted_before_any_of_them_is_looked_at(
    client: httpx.AsyncClient, query: str, field: str
) -> None:
    response = await client.get(f"{VOLUMES}?{query}")

    (error,) = response.json()["errors"]
    assert (response.status_code, error["field"], error["code"]) == (422, field, "too-long")


@pytest.mark.parametrize(("path", "kib"), [(VOLUMES, 64), (EXPAND, 1024)])
async def test_body_may_be_as_large_as_the_route_allows(client: httpx.AsyncClient, path: str, kib: int) -> None:
    body = json.dumps(VOLUME if path == VOLUMES else {"by": 1}).encode()
    allowed = await client.post(path, content=body.ljust(kib * 1024), headers=JSON)
    refused = await client.post(path, content=body.ljust(kib * 1024 + 1), headers=JSON)

    assert allowed.status_code == 202
    assert (refused.status_code, refused.json()["code"]) == (413, "content-too-large")
    assert refused.json()["detail"] == f"The body is larger than {kib} KiB."


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, set[str]]]:
    """Yield the method and the path of each operation with a body, and the members of the body."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                name = schema["$ref"].rpartition("/")[2]
                yield method.upper(), path, set(document["components"]["schemas"][name]["properties"])


def test_exactly_the_routes_whose_body_may_have_ids_allow_large_bodies(fake: FakeServices) -> None:
    operations = list(bodies(create_app(fake.factory()).openapi()))
    large = {(method, path) for method, path, _ in operations if max_body_kib(method, path) == 1024}

    assert large == {(method, path) for method, path, members in operations if members & {"ids", "params"}}
    assert len(operations) > len(large) > 3


@pytest.mark.parametrize("body", [b'{"by": [' + b"1," * 400_000 + b"1]}", b'{"ids": [' + b"{}," * 300_000 + b"{}]}"])
async def test_nonsense_is_not_sorted_for_its_key(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr("api.acceptance.json", None)
    response = await client.post(EXPAND, content=body, headers=JSON | {"Idempotency-Key": "one"})

    assert response.status_code == 422
