"""Projects: nothing of one is seen, changed or found out with a key of another."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from domain.access.model import Role
from domain.access.service import NewKey
from domain.audit.model import Actor
from domain.schedules.repository import postgresql_clock
from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql
from tests.integration.project_builders import a_project, two_projects
from tests.support.http import client_of

V1 = "/api/v1"
SCHEDULE = {"name": "nightly", "cron": "0 2 * * *", "action": "bulk.expand", "params": {"by": "1MiB"}}


async def made(http: httpx.AsyncClient, name: str = "data") -> dict[str, str]:
    """Create a volume, a schedule and a key; return the paths of what there is then."""
    job = (await http.post(f"{V1}/volumes", json={"name": name, "size": "1MiB"})).json()
    schedule = (await http.post(f"{V1}/schedules", json=SCHEDULE)).json()
    key = (await http.post(f"{V1}/keys", json={"name": "backup", "role": "viewer"})).json()
    return {
        "volumes": f"{V1}/volumes/{job['volume_id']}",
        "jobs": f"{V1}/jobs/{job['id']}",
        "schedules": f"{V1}/schedules/{schedule['id']}",
        "keys": f"{V1}/keys/{key['id']}",
    }


async def test_same_names_are_free_in_two_projects(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        first, second = await made(one), await made(other)
        taken = await other.post(f"{V1}/volumes", json={"name": "data", "size": "1MiB"})

    assert first.keys() == second.keys()
    assert taken.status_code == 409


async def test_lists_have_only_what_is_in_the_project(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        paths = await made(one)
        for name, path in paths.items():
            own, foreign = await one.get(f"{V1}/{name}"), await other.get(f"{V1}/{name}")
            assert path.rpartition("/")[2] in own.text
            assert path.rpartition("/")[2] not in foreign.text
            assert [item["name"] for item in foreign.json()["items"] if name != "keys"] == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "{volumes}", None),
        ("PATCH", "{volumes}", {"labels": {}}),
        ("DELETE", "{volumes}", None),
        ("POST", "{volumes}/expand", {"by": "1MiB"}),
        ("POST", "{volumes}/snapshots", {"name": "s"}),
        ("GET", "{volumes}/snapshots", None),
        ("GET", "{jobs}", None),
        ("GET", "{jobs}?", None),
        ("GET", "{jobs}/events", None),
        ("GET", "{jobs}/items", None),
        ("POST", "{jobs}/cancel", None),
        ("POST", "{jobs}/retry", None),
        ("GET", "{schedules}", None),
        ("PATCH", "{schedules}", {"enabled": False}),
        ("DELETE", "{schedules}", None),
        ("GET", "{schedules}/runs", None),
        ("POST", "{schedules}/run", None),
        ("DELETE", "{keys}", None),
        ("POST", "{keys}/rotate", {}),
    ],
)
async def test_what_is_in_another_project_does_not_exist(
    services: Services, app: FastAPI, method: str, path: str, body: object
) -> None:
    async with two_projects(services, app) as (one, other):
        path = path.format_map(await made(one))
        before = [(await one.get(f"{V1}/{name}")).json() for name in ("volumes", "jobs", "schedules", "keys")]
        async with asyncio.timeout(20):  # a stream would not end
            answer = await other.request(method, path, json=body)
        after = [(await one.get(f"{V1}/{name}")).json() for name in ("volumes", "jobs", "schedules", "keys")]

    assert (answer.status_code, answer.json()["code"][-10:]) == (404, answer.json()["code"][-10:])
    assert answer.json()["code"].endswith("-not-found")
    assert after == before


async def test_ended_job_in_memory_is_not_shown_to_another_project(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        paths = await made(one)
        await one.post(f"{paths['jobs']}/cancel")
        own = await one.get(paths["jobs"])
        foreign = await other.get(paths["jobs"], headers={"If-None-Match": own.headers["etag"]})

    assert own.json()["status"] == "cancelled"
    assert foreign.status_code == 404


async def test_bulk_job_finds_no_volume_of_another_project(services: Services, app: FastAPI) -> None:
    """An id of one, given in the request, is as if it were nobody's."""
    async with two_projects(services, app) as (one, other):
        volume = (await made(one))["volumes"].rpartition("/")[2]
        await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
        by_id = await other.post(f"{V1}/volumes/expand", json={"by": "1MiB", "ids": [volume], "dry_run": True})
        everything = await other.post(f"{V1}/volumes/expand", json={"by": "1MiB", "dry_run": True})

    assert by_id.json()["total"] == everything.json()["total"] == 0


async def test_bulk_job_works_on_no_volume_of_another_project(
    services: Services, app: FastAPI, settings: Settings, running_worker: RunningWorker
) -> None:
    async with two_projects(services, app) as (one, other), running_worker(settings):
        wait = {"Prefer": "wait=30"}
        created = await one.post(f"{V1}/volumes", json={"name": "data", "size": "1MiB"}, headers=wait)
        body = {"by": "1MiB", "ids": [created.json()["volume_id"]]}
        job = await other.post(f"{V1}/volumes/expand", json=body, headers=wait)
        items = await other.get(f"{V1}/jobs/{job.json()['id']}/items")
        volume = await one.get(f"{V1}/volumes/{created.json()['volume_id']}")

    assert job.json()["status"] == "succeeded"
    assert [item["code"] for item in items.json()["items"]] == ["volume-gone"]
    assert (volume.json()["size"], volume.json()["state"], volume.json()["used"]) == (2**20, "available", None)


async def test_idempotency_key_of_another_project_is_free(services: Services, app: FastAPI) -> None:
    headers = {"Idempotency-Key": "the-same"}
    async with two_projects(services, app) as (one, other):
        answers = [
            await http.post(f"{V1}/volumes", json={"name": name, "size": "1MiB"}, headers=headers)
            for http, name in ((one, "a"), (other, "b"))
        ]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] != answers[1].json()["id"]


async def test_cursor_of_another_project_is_refused(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        for name in ("a", "b"):
            await one.post(f"{V1}/volumes", json={"name": name, "size": "1MiB"})
        cursor = (await one.get(f"{V1}/volumes?limit=1")).json()["next_cursor"]
        answer = await other.get(f"{V1}/volumes", params={"limit": 1, "cursor": cursor})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad-cursor")


async def test_system_key_acts_in_the_project_that_it_names(
    services: Services, app: FastAPI, client: httpx.AsyncClient
) -> None:
    async with two_projects(services, app) as (one, _):
        created = await client.post(
            f"{V1}/volumes", json={"name": "data", "size": "1MiB"}, headers={"Cistern-Project": "one"}
        )
        seen = (await one.get(f"{V1}/volumes")).json()["items"]
        unseen = (await client.get(f"{V1}/volumes")).json()["items"]

    assert created.status_code == 202
    assert ([volume["name"] for volume in seen], unseen) == (["data"], [])


@pytest.mark.parametrize("project", ["other", "default", "unknown", "\xff"])
async def test_other_keys_act_in_their_own_project_only(services: Services, app: FastAPI, project: str) -> None:
    """A project that exists is refused like one that does not."""
    async with two_projects(services, app) as (one, _):
        header = project.encode("latin-1")
        foreign = await one.get(f"{V1}/volumes", headers={b"Cistern-Project": header})
        own = await one.get(f"{V1}/volumes", headers={"Cistern-Project": "one"})

    assert (foreign.status_code, foreign.json()["code"], own.status_code) == (404, "project-not-found", 200)


async def test_owner_makes_no_system_key_and_sees_none(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, _):
        await services.keys.create(NewKey("root", Role.SYSTEM), actor=Actor("tests"))
        made_key = await one.post(f"{V1}/keys", json={"name": "me", "role": "system"})
        keys = (await one.get(f"{V1}/keys")).json()["items"]

    assert made_key.status_code == 403
    assert {key["role"] for key in keys} == {"owner"}


async def test_owner_sees_only_its_own_project(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        own = (await one.get(f"{V1}/projects")).json()["items"]
        foreign = (await other.get(f"{V1}/projects")).json()["items"][0]
        answer = await one.get(f"{V1}/projects/{foreign['id']}")
        created = await one.post(f"{V1}/projects", json={"name": "mine"})

    assert [project["name"] for project in own] == ["one"]
    assert (answer.status_code, created.status_code) == (404, 403)


async def test_run_of_a_schedule_needs_a_key_of_its_owner(services: Services, app: FastAPI) -> None:
    """Looked at when the run is due: the key may have been revoked since the schedule was made."""
    project = await a_project(services, "one")
    async with client_of(app), project.client(app) as http:
        made_schedule = (await http.post(f"{V1}/schedules", json=SCHEDULE)).json()
        await make_due(services)
        assert await services.schedule_runner.start_due() == 1
        await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now()")
        await sql(services, "UPDATE api_keys SET role = 'operator' WHERE name = 'one-owner'")
        await make_due(services)
        assert await services.schedule_runner.start_due() == 0
        _, runs = await services.schedules.get(made_schedule["id"], project_id=project.id)

    assert [run.outcome for run in runs] == ["skipped", "started"]
    assert "'one-owner'" in (runs[0].detail or "")


async def make_due(services: Services) -> None:
    async with services.database.transaction() as session:
        now = await postgresql_clock(session)
        await session.execute(text("UPDATE schedules SET next_run_at = :now"), {"now": now.replace(second=0)})
