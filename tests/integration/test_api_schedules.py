"""Schedules over HTTP, on real PostgreSQL and Redis: made, looked at, changed, run now, paused, deleted."""

import asyncio
from uuid import UUID

import httpx
import pytest

from api.schemas.schedules import PARAMS
from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.schedule_builders import NIGHTLY, SCHEDULES, end_jobs, made, schedules_and_jobs


async def make_due(services: Services, schedule_id: str, minutes: int = 0) -> None:
    """Have it be due some whole minutes ago, and at the last full one."""
    await sql(
        services,
        "UPDATE schedules SET next_run_at = date_trunc('minute', now()) - make_interval(mins => :minutes)"
        " WHERE id = :id",
        minutes=minutes,
        id=UUID(schedule_id),
    )


async def test_a_schedule_is_made_and_shown(client: httpx.AsyncClient) -> None:
    answer = await client.post(SCHEDULES, json=NIGHTLY)
    schedule = answer.json()

    assert (answer.status_code, answer.headers["location"]) == (201, f"{SCHEDULES}/{schedule['id']}")
    assert (await client.get(answer.headers["location"])).json() == schedule
    assert schedule["params"] == {"percent": 20, "usage_above": 80, "up_to": 2**40}
    assert (schedule["enabled"], schedule["catch_up_seconds"], schedule["last_runs"]) == (True, 6 * 3600, [])
    assert schedule["next_run_at"].endswith("30:00Z")


async def test_schedules_are_listed_by_pages_and_found_by_name(client: httpx.AsyncClient) -> None:
    names = [(await made(client, name=f"one-{number}"))["name"] for number in range(3)]
    first = (await client.get(f"{SCHEDULES}?limit=2")).json()
    rest = (await client.get(f"{SCHEDULES}?limit=2&cursor={first['next_cursor']}")).json()

    assert [one["name"] for one in first["items"] + rest["items"]] == names[::-1]
    assert rest["next_cursor"] is None
    named = (await client.get(f"{SCHEDULES}?name=one-1")).json()["items"]
    assert [one["name"] for one in named] == ["one-1"]


async def test_a_key_makes_one_schedule_of_many_requests(services: Services, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(client.post(SCHEDULES, json=NIGHTLY, headers=key) for _ in range(4)))
    other = await client.post(SCHEDULES, json=NIGHTLY | {"name": "other"}, headers=key)

    assert [answer.status_code for answer in answers] == [201] * 4
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert {answer.headers["location"] for answer in answers} == {f"{SCHEDULES}/{answers[0].json()['id']}"}
    assert sorted(answer.headers.get("idempotency-replayed", "") for answer in answers) == ["", "true", "true", "true"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    assert len(await schedules_and_jobs(services)) == 1


async def test_a_key_makes_one_run_of_many_requests(services: Services, client: httpx.AsyncClient) -> None:
    schedule, key = await made(client), {"Idempotency-Key": "k"}
    address = f"{SCHEDULES}/{schedule['id']}/run"
    answers = await asyncio.gather(*(client.post(address, headers=key) for _ in range(4)))

    assert [answer.status_code for answer in answers] == [202] * 4
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert len(await sql(services, "SELECT id FROM jobs")) == 1


async def test_a_run_can_be_asked_for_and_is_shown_with_its_job(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, enabled=False)
    address = f"{SCHEDULES}/{schedule['id']}"
    answer = await client.post(f"{address}/run", headers={"X-Cistern-Caller": "me"})
    job = answer.json()
    refused = await client.post(f"{address}/run")
    seen = (await client.get(address)).json()

    assert (answer.status_code, job["kind"], job["schedule_id"]) == (202, "bulk.expand", schedule["id"])
    assert job["created_by"] == "me"
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (refused.status_code, refused.json()["code"], refused.json()["job_id"]) == (409, "schedule-busy", job["id"])
    (run,) = seen["last_runs"]
    assert (run["outcome"], run["job_id"], run["job_status"]) == ("started", job["id"], "queued")
    assert run["scheduled_for"] == run["last_scheduled_for"] == job["scheduled_for"]
    assert seen["next_run_at"] is None
    await end_jobs(services)
    assert (await client.post(f"{address}/run")).status_code == 202
    runs = (await client.get(f"{address}/runs")).json()["items"]
    assert [one["job_status"] for one in runs] == ["queued", "succeeded"]


async def test_the_last_runs_of_each_schedule_are_shown_newest_first(
    services: Services, client: httpx.AsyncClient
) -> None:
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
    strange = await client.get(f"{SCHEDULES}/{other['id']}/runs?limit=4&cursor={first['next_cursor']}")
    assert strange.json()["code"] == "bad-cursor"


@pytest.mark.parametrize("pruned", ["DELETE FROM jobs", "UPDATE jobs SET pruned_at = now()"])
async def test_a_run_whose_job_was_pruned_is_still_told(
    services: Services, client: httpx.AsyncClient, pruned: str
) -> None:
    schedule = await made(client)
    job = (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).json()
    await end_jobs(services)
    await sql(services, pruned)
    (run,) = (await client.get(f"{SCHEDULES}/{schedule['id']}")).json()["last_runs"]

    assert (run["job_id"], run["job_status"]) == (job["id"], None)
    assert (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).status_code == 202


async def test_a_change_of_time_is_due_by_the_new_time_only(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client)
    address = f"{SCHEDULES}/{schedule['id']}"
    changed = (await client.patch(address, json={"cron": "0 3 * * *", "time_zone": "UTC"})).json()

    assert changed["next_run_at"].endswith("T03:00:00Z")
    assert changed["updated_at"] > schedule["updated_at"]
    kept = {name for name in schedule if changed[name] == schedule[name]}
    assert kept == schedule.keys() - {"cron", "time_zone", "next_run_at", "updated_at"}


async def test_what_changes_no_time_leaves_what_is_due(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *")
    await make_due(services, schedule["id"])
    body = {"name": "renamed", "params": {"by": 1}, "catch_up_seconds": 60, "enabled": True, "cron": "* * * * *"}
    changed = (await client.patch(f"{SCHEDULES}/{schedule['id']}", json=body)).json()

    assert (changed["name"], changed["params"], changed["catch_up_seconds"]) == ("renamed", {"by": 1}, 60)
    assert changed["next_run_at"] < schedule["next_run_at"]
    assert await services.schedule_runner.start_due() == 1


async def test_a_pause_is_not_made_up_for(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *")
    address = f"{SCHEDULES}/{schedule['id']}"
    await make_due(services, schedule["id"], minutes=90)
    paused = (await client.patch(address, json={"enabled": False})).json()
    assert await services.schedule_runner.start_due() == 0
    resumed = (await client.patch(address, json={"enabled": True})).json()
    await services.schedule_runner.start_due()

    assert (paused["enabled"], paused["next_run_at"]) == (False, None)
    assert resumed["next_run_at"] >= schedule["next_run_at"]
    outcomes = {run["outcome"] for run in (await client.get(f"{address}/runs")).json()["items"]}
    assert outcomes <= {"started"}  # a minute may have begun just now


@pytest.mark.parametrize("broken", ['params = \'{"by": 1, "backend": "gone"}\'', "time_zone = 'Europe/Atlantis'"])
async def test_a_schedule_that_cannot_run_any_more_can_be_paused(
    services: Services, client: httpx.AsyncClient, broken: str
) -> None:
    schedule = await made(client)
    await sql(services, f"UPDATE schedules SET {broken}")
    answer = await client.patch(f"{SCHEDULES}/{schedule['id']}", json={"enabled": False, "name": "broken"})

    assert (answer.status_code, answer.json()["enabled"], answer.json()["next_run_at"]) == (200, False, None)


async def test_missed_times_are_told_as_one_span(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client, cron="* * * * *", catch_up_seconds=0)
    address = f"{SCHEDULES}/{schedule['id']}"
    await make_due(services, schedule["id"], minutes=90)
    await services.schedule_runner.start_due()
    started, missed = (await client.get(address)).json()["last_runs"]

    assert (started["outcome"], started["count"], started["detail"]) == ("started", 1, None)
    assert (missed["outcome"], missed["job_id"]) == ("missed", None)
    assert missed["count"] in (90, 91)
    assert missed["scheduled_for"] < missed["last_scheduled_for"] < started["scheduled_for"]


async def test_a_schedule_that_is_deleted_leaves_its_job_alone(services: Services, client: httpx.AsyncClient) -> None:
    schedule = await made(client)
    job = (await client.post(f"{SCHEDULES}/{schedule['id']}/run")).json()
    answer = await client.delete(f"{SCHEDULES}/{schedule['id']}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get(f"{SCHEDULES}/{schedule['id']}")).status_code == 404
    assert (await client.get(f"/api/v1/jobs/{job['id']}")).json()["status"] == "queued"
    assert await sql(services, "SELECT * FROM schedule_runs") == []


def test_every_action_has_a_shape_and_every_shape_an_action(services: Services) -> None:
    assert PARAMS.keys() == services.actions.keys()
