"""Schedules over HTTP, on real servers: create, get, list, update, run now, pause, delete."""

import asyncio
from uuid import UUID

import httpx
import pytest

from api.schemas.schedules import PARAMS
from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.schedule_builders import NIGHTLY, SCHEDULES, end_jobs, made, schedules_and_jobs


async def make_due(services: Services, schedule_id: str, minutes: int = 0) -> None:
    """Move the next run of a schedule to ``minutes`` before the current minute."""
    await sql(
        services,
        "UPDATE schedules SET next_run_at = date_trunc('minute', now()) - make_interval(mins => :minutes)"
        " WHERE id = :id",
        minutes=minutes,
        id=UUID(schedule_id),
    )


async def test_schedule_is_created_and_returned(client: httpx.AsyncClient) -> None:
    response = await client.post(SCHEDULES, json=NIGHTLY)
    schedule = response.json()

    assert (response.status_code, response.headers["location"]) == (201, f"{SCHEDULES}/{schedule['id']}")
    assert (await client.get(response.headers["location"])).json() == schedule
    assert schedule["params"] == {"percent": 20, "usage_above": 80, "up_to": 2**40}
    assert (schedule["enabled"], schedule["catch_up_seconds"], schedule["last_runs"]) == (True, 6 * 3600, [])
    assert schedule["next_run_at"].endswith("30:00Z")


async def test_schedules_are_listed_in_pages_and_found_by_name(client: httpx.AsyncClient) -> None:
    names = [(await made(client, name=f"one-{number}"))["name"] for number in range(3)]
    first = (await client.get(f"{SCHEDULES}?limit=2")).json()
    rest = (await client.get(f"{SCHEDULES}?limit=2&cursor={first['next_cursor']}")).json()

    assert [one["name"] for one in first["items"] + rest["items"]] == names[::-1]
    assert rest["next_cursor"] is None
    named = (await client.get(f"{SCHEDULES}?name=one-1")).json()["items"]
    assert [one["name"] for one in named] == ["one-1"]


async def test_one_key_creates_one_schedule(services: Services, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    responses = await asyncio.gather(*(client.post(SCHEDULES, json=NIGHTLY, headers=key) for _ in range(4)))
    other = await client.post(SCHEDULES, json=NIGHTLY | {"name": "other"}, headers=key)

    assert [response.status_code for response in responses] == [201] * 4
    assert all(response.json() == responses[0].json() for response in responses)
    assert {response.headers["location"] for response in responses} == {f"{SCHEDULES}/{responses[0].json()['id']}"}
    assert sorted(response.headers.get("idempotency-replayed", "") for response in responses) == [
        "",
        "true",
        "true",
        "true",
    ]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    assert len(await schedules_and_jobs(services)) == 1


async def test_one_key_creates_one_run(services: Services, client: httpx.AsyncClient) -> None:
    schedule, key = await made(client), {"Idempotency-Key": "k"}
    path = f"{SCHEDULES}/{schedule['id']}/run"
    responses = await asyncio.gather(*(client.post(path, headers=key) for _ in range(4)))

    assert [response.status_code for response in responses] == [202] * 4
    assert all(response.json() == responses[0].json() for response in responses)
    assert len(await sql(services, "SELECT id FROM jobs")) == 1


async def test_run_now_is_listed_with_its_job(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, enabled=False)
    path = f"{SCHEDULES}/{schedule['id']}"
    response = await client.post(f"{path}/run")
    job = response.json()
    rejected = await client.post(f"{path}/run")
    found = (await client.get(path)).json()

    assert (response.status_code, job["kind"], job["schedule_id"]) == (202, "bulk.expand", schedule["id"])
    assert job["created_by"] == "tests"
    assert response.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (rejected.status_code, rejected.json()["code"], rejected.json()["job_id"]) == (
        409,
        "schedule-busy",
        job["id"],
    )
    (run,) = found["last_runs"]
    assert (run["outcome"], run["job_id"], run["job_status"]) == ("started", job["id"], "queued")
    assert run["scheduled_for"] == run["last_scheduled_for"] == job["scheduled_for"]
    assert found["next_run_at"] is None
    await end_jobs(services)
    assert (await client.post(f"{path}/run")).status_code == 202
    runs = (await client.get(f"{path}/runs")).json()["items"]
    assert [one["job_status"] for one in runs] == ["queued", "succeeded"]


async def test_last_runs_of_each_schedule_are_newest_first(services: Services, client: httpx.AsyncClient) -> None:
    one, other = await made(client, name="one"), await made(client, name="other")
    for _ in range(7):
        assert (await client.post(f"{SCHEDULES}/{one['id']}/run")).status_code == 202
        await end_jobs(services)
    assert (await client.post(f"{SCHEDULES}/{other['id']}/run")).status_code == 202
    listed = {schedule["name"]: schedule["last_runs"] for schedule in (await client.get(SCHEDULES)).json()["items"]}
    times = [run["scheduled_for"] for run in listed["one"]]

    assert (len(times), times) == (5, sorted(times, reverse=True))
    assert [run["job_status"] for run in listed["other"]] == ["queued"]
    first = (await client.get(f"{SCHEDULES}/{one['id']}/runs?limit=4")).json()
    rest = (await client.get(f"{SCHEDULES}/{one['id']}/runs?limit=4&cursor={first['next_cursor']}")).json()
    assert [run["scheduled_for"] for run in first["items"]][:4] == times[:4]
    assert (len(rest["items"]), rest["next_cursor"]) == (3, None)
    foreign = await client.get(f"{SCHEDULES}/{other['id']}/runs?limit=4&cursor={first['next_cursor']}")
    assert foreign.json()["code"] == "bad-cursor"


@pytest.mark.parametrize("pruned", ["DELETE FROM jobs", "UPDATE jobs SET pruned_at = now()"])
async def test_run_remains_listed_after_its_job_is_pruned(
    services: Services, client: httpx.AsyncClient, pruned: str
) -> None:
    schedule = await made(client)
    job = (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).json()
    await end_jobs(services)
    await sql(services, pruned)
    (run,) = (await client.get(f"{SCHEDULES}/{schedule['id']}")).json()["last_runs"]

    assert (run["job_id"], run["job_status"]) == (job["id"], None)
    assert (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).status_code == 202


async def test_changed_cron_moves_the_next_run(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client)
    path = f"{SCHEDULES}/{schedule['id']}"
    changed = (await client.patch(path, json={"cron": "0 3 * * *", "time_zone": "UTC"})).json()

    assert changed["next_run_at"].endswith("T03:00:00Z")
    assert changed["updated_at"] > schedule["updated_at"]
    unchanged = {name for name in schedule if changed[name] == schedule[name]}
    assert unchanged == schedule.keys() - {"cron", "time_zone", "next_run_at", "updated_at"}


async def test_change_without_a_new_time_keeps_the_due_run(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *")
    await make_due(services, schedule["id"])
    body = {"name": "renamed", "params": {"by": "1MiB"}, "catch_up_seconds": 60, "enabled": True, "cron": "* * * * *"}
    changed = (await client.patch(f"{SCHEDULES}/{schedule['id']}", json=body)).json()

    assert (changed["name"], changed["params"], changed["catch_up_seconds"]) == ("renamed", {"by": 2**20}, 60)
    assert changed["next_run_at"] < schedule["next_run_at"]
    assert await services.schedule_runner.start_due() == 1


async def test_change_of_another_version_is_refused(services: Services, client: httpx.AsyncClient) -> None:
    url = f"{SCHEDULES}/{(await made(client))['id']}"
    tag = (await client.get(url)).headers["etag"]
    unchanged = await client.get(url, headers={"If-None-Match": tag})
    first = await client.patch(url, json={"cron": "0 3 * * *"}, headers={"If-Match": tag})
    second = await client.patch(url, json={"cron": "0 4 * * *"}, headers={"If-Match": tag})
    now = await client.get(url)
    third = await client.patch(url, json={"enabled": False}, headers={"If-Match": now.headers["etag"]})

    assert [one.status_code for one in (unchanged, first, second, third)] == [304, 200, 412, 200]
    assert (second.json()["code"], now.json()["cron"]) == ("precondition-failed", "0 3 * * *")


async def test_run_makes_another_version_of_its_schedule(services: Services, client: httpx.AsyncClient) -> None:
    url = f"{SCHEDULES}/{(await made(client))['id']}"
    tags = [(await client.get(url)).headers["etag"]]
    job = (await client.post(f"{url}/run")).json()
    tags.append((await client.get(url)).headers["etag"])
    await client.post(f"/api/v1/jobs/{job['id']}/cancel")
    tags.append((await client.get(url)).headers["etag"])

    assert len(set(tags)) == 3


async def test_paused_times_are_not_caught_up(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *")
    path = f"{SCHEDULES}/{schedule['id']}"
    await make_due(services, schedule["id"], minutes=90)
    paused = (await client.patch(path, json={"enabled": False})).json()
    assert await services.schedule_runner.start_due() == 0
    resumed = (await client.patch(path, json={"enabled": True})).json()
    await services.schedule_runner.start_due()

    assert (paused["enabled"], paused["next_run_at"]) == (False, None)
    assert resumed["next_run_at"] >= schedule["next_run_at"]
    outcomes = {run["outcome"] for run in (await client.get(f"{path}/runs")).json()["items"]}
    assert outcomes <= {"started"}  # a new minute may have begun meanwhile


@pytest.mark.parametrize("broken", ['params = \'{"by": 1, "backend": "gone"}\'', "time_zone = 'Europe/Atlantis'"])
async def test_schedule_that_can_no_longer_run_can_be_paused(
    services: Services, client: httpx.AsyncClient, broken: str
) -> None:
    schedule = await made(client)
    await sql(services, f"UPDATE schedules SET {broken}")
    response = await client.patch(f"{SCHEDULES}/{schedule['id']}", json={"enabled": False, "name": "broken"})

    assert (response.status_code, response.json()["enabled"], response.json()["next_run_at"]) == (200, False, None)


async def test_missed_times_are_combined_into_one_run(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *", catch_up_seconds=0)
    path = f"{SCHEDULES}/{schedule['id']}"
    await make_due(services, schedule["id"], minutes=90)
    await services.schedule_runner.start_due()
    started, missed = (await client.get(path)).json()["last_runs"]

    assert (started["outcome"], started["count"], started["detail"]) == ("started", 1, None)
    assert (missed["outcome"], missed["job_id"]) == ("missed", None)
    assert missed["count"] in (90, 91)
    assert missed["scheduled_for"] < missed["last_scheduled_for"] < started["scheduled_for"]


async def test_deleted_schedule_leaves_its_job_alone(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client)
    job = (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).json()
    response = await client.delete(f"{SCHEDULES}/{schedule['id']}")

    assert (response.status_code, response.content) == (204, b"")
    assert (await client.get(f"{SCHEDULES}/{schedule['id']}")).status_code == 404
    assert (await client.get(f"/api/v1/jobs/{job['id']}")).json()["status"] == "queued"
    assert await sql(services, "SELECT * FROM schedule_runs") == []


def test_actions_and_params_schemas_match(services: Services) -> None:
    assert PARAMS.keys() == services.actions.keys()
