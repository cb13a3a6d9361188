"""Invalid schedules over HTTP: rejected with the name of the field, and nothing is changed."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.services import Services
from tests.integration.schedule_builders import NIGHTLY, SCHEDULES, made, schedules_and_jobs

BAD: list[tuple[dict[str, Any], str]] = [
    ({"cron": "every night"}, "cron"),
    ({"cron": "61 2 * * *"}, "cron"),
    ({"cron": "0 0 30 2 *"}, "cron"),
    ({"cron": "*/90 * * * *"}, "cron"),
    ({"cron": "0 */36 * * *"}, "cron"),
    ({"cron": "0 0 0 1 1 *"}, "cron"),
    ({"cron": None}, "cron"),
    ({"time_zone": "Europe/Atlantis"}, "time_zone"),
    ({"time_zone": ""}, "time_zone"),
    ({"catch_up_seconds": -1}, "catch_up_seconds"),
    ({"catch_up_seconds": 10**12}, "catch_up_seconds"),
    ({"catch_up_seconds": "60"}, "catch_up_seconds"),
    ({"enabled": "yes"}, "enabled"),
    ({"name": "../nightly"}, "name"),
    ({"colour": "blue"}, "colour"),
    ({"params": None}, "params"),
    ({"params": {}}, "params"),
    ({"params": {"percent": -1}}, "params.percent"),
    ({"params": {"percent": 1, "by": 1}}, "params.percent"),
    ({"params": {"by": 1, "ids": ["7"]}}, "params.ids.0"),
    ({"params": {"by": 1, "ids": ["7"] * 10_001}}, "params.ids"),
    ({"params": {"by": 1, "max_concurrent": 101}}, "params.max_concurrent"),
    ({"params": {"by": 1, "backend": "elsewhere"}}, "params.backend"),
    ({"params": {"by": 1, "dry_run": True}}, "params.dry_run"),
]


@pytest.mark.parametrize(("members", "field"), [*BAD, ({"action": "volume.delete"}, "action")])
async def test_invalid_schedule_is_rejected_with_the_field(
    services: Services, client: httpx.AsyncClient, members: dict[str, Any], field: str
) -> None:
    response = await client.post(SCHEDULES, json=NIGHTLY | members)

    assert (response.status_code, [error["field"] for error in response.json()["errors"]]) == (422, [field]), (
        response.text
    )
    assert await schedules_and_jobs(services) == []


@pytest.mark.parametrize("missing", ["name", "cron", "action", "params"])
async def test_missing_member_is_named(client: httpx.AsyncClient, missing: str) -> None:
    body = {name: value for name, value in NIGHTLY.items() if name != missing}
    response = await client.post(SCHEDULES, json=body)

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, missing)


@pytest.mark.parametrize(("members", "field"), [*BAD, ({"action": "bulk.expand"}, "action")])
async def test_invalid_change_is_rejected_with_the_field(
    services: Services, client: httpx.AsyncClient, members: dict[str, Any], field: str
) -> None:
    schedule = await made(client)
    before = await schedules_and_jobs(services)
    response = await client.patch(f"{SCHEDULES}/{schedule['id']}", json={"enabled": False} | members)

    assert (response.status_code, [error["field"] for error in response.json()["errors"]]) == (422, [field]), (
        response.text
    )
    assert await schedules_and_jobs(services) == before


async def test_schedule_names_are_unique(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(client.post(SCHEDULES, json=NIGHTLY) for _ in range(4)))
    other = await made(client, name="other")
    renamed = await client.patch(f"{SCHEDULES}/{other['id']}", json={"name": "nightly", "cron": "0 3 * * *"})

    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]
    assert (renamed.status_code, renamed.json()["code"]) == (409, "name-taken")
    assert "nightly" in renamed.json()["detail"]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE", "GET runs", "POST run"])
async def test_unknown_id_or_path_is_404(client: httpx.AsyncClient, method: str) -> None:
    verb, _, below = method.partition(" ")
    body: dict[str, Any] | None = {} if verb == "PATCH" else None
    response = await client.request(verb, f"{SCHEDULES}/{uuid4()}/{below}".rstrip("/"), json=body)

    assert (response.status_code, response.json()["code"]) == (404, "schedule-not-found")
