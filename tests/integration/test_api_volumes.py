"""Volumes over HTTP, on real servers: an accepted request is stored, a rejected one changes nothing."""

import asyncio
import json
from collections import Counter
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, select, update

from domain.jobs.model import Job
from domain.operations import VolumeState
from domain.services import Services
from domain.settings import Settings
from domain.volumes.model import Volume
from tests.integration.conftest import RunningWorker

VOLUMES = "/api/v1/volumes"
JOBS = "/api/v1/jobs"


async def create(client: httpx.AsyncClient, name: str, **members: Any) -> dict[str, Any]:
    """Request a volume, and return its job."""
    response = await client.post(VOLUMES, json={"name": name, "size": 8192, **members})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def make_available(services: Services) -> None:
    """Mark every volume as available and every job as succeeded, as if a worker had run."""
    async with services.database.transaction() as session:
        await session.execute(update(Volume).values(state=VolumeState.AVAILABLE, job_id=None))
        await session.execute(update(Job).values(status="succeeded", finished_at=func.now()))


async def count(services: Services) -> tuple[int, int]:
    async with services.database.transaction() as session:
        volumes = await session.scalar(select(func.count()).select_from(Volume))
        jobs = await session.scalar(select(func.count()).select_from(Job))
    return volumes or 0, jobs or 0


async def test_accepted_volume_is_a_row_a_job_and_a_message(
    services: Services, client: httpx.AsyncClient, redis_url: str
) -> None:
    response = await client.post(VOLUMES, json={"name": "one", "size": "1MiB", "labels": {"stadt": "Köln 🌊"}})

    job = response.json()
    assert response.headers["location"] == f"{JOBS}/{job['id']}"
    assert (await client.get(response.headers["location"])).json() == job
    volume = (await client.get(f"{VOLUMES}/{job['volume_id']}")).json()
    assert (volume["state"], volume["job_id"], volume["size"]) == ("creating", job["id"], 2**20)
    assert volume["labels"] == {"stadt": "Köln 🌊"}
    assert volume["created_at"].endswith("Z")
    assert await services.queue.redis.zcard(services.queue.keys.queue("memory")) == 1


async def test_one_of_fifty_concurrent_expansions_is_accepted(services: Services, client: httpx.AsyncClient) -> None:
    volume_id = (await create(client, "one"))["volume_id"]
    await make_available(services)

    responses = await asyncio.gather(
        *(client.post(f"{VOLUMES}/{volume_id}/expand", json={"by": number + 1}) for number in range(50))
    )

    assert Counter(response.status_code for response in responses) == {202: 1, 409: 49}
    (winner,) = [response.json()["id"] for response in responses if response.status_code == 202]
    losers = [response.json() for response in responses if response.status_code == 409]
    assert {(problem["code"], problem["job_id"]) for problem in losers} == {("volume-busy", winner)}
    assert await count(services) == (1, 2)


async def test_one_of_fifty_concurrent_creations_gets_the_name(services: Services, client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(client.post(VOLUMES, json={"name": "one", "size": 1}) for _ in range(50)))

    assert Counter(response.status_code for response in responses) == {202: 1, 409: 49}
    assert {response.json()["code"] for response in responses if response.status_code == 409} == {"name-taken"}
    assert await count(services) == (1, 1)


async def test_pages_list_every_volume_once_despite_new_ones(client: httpx.AsyncClient) -> None:
    for number in range(9):
        await create(client, f"v{number}")

    listed: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"{VOLUMES}?limit=4{cursor and '&cursor='}{cursor}")).json()
        listed += [volume["name"] for volume in page["items"]]
        cursor = page["next_cursor"]
        await create(client, f"new{len(listed)}")

    assert listed == [f"v{number}" for number in reversed(range(9))]


async def test_filters_are_applied_by_the_database(services: Services, client: httpx.AsyncClient) -> None:
    await create(client, "a", labels={"team": "search", "tier": "gold"})
    await create(client, "b", labels={"team": "search"})
    await make_available(services)
    job = await create(client, "c", labels={"team": "search", "odd": "'\\\"%_; DROP TABLE volumes"})

    async def listed(path: str) -> list[str]:
        return [item.get("name") or item["id"] for item in (await client.get(path)).json()["items"]]

    assert await listed(f"{VOLUMES}?label=team:search") == ["c", "b", "a"]
    assert await listed(f"{VOLUMES}?label=team:search&label=tier:gold") == ["a"]
    assert await listed(f"{VOLUMES}?state=creating") == ["c"]
    assert await listed(f"{VOLUMES}?name=b") == ["b"]
    response = await client.get(VOLUMES, params={"label": "odd:'\\\"%_; DROP TABLE volumes"})
    assert [volume["name"] for volume in response.json()["items"]] == ["c"]
    assert await listed(f"{JOBS}?status=queued") == [job["id"]]
    assert await listed(f"{JOBS}?volume_id={job['volume_id']}&kind=volume.create") == [job["id"]]
    assert await listed(f"{JOBS}?kind=volume.delete") == []
    assert await listed(f"{JOBS}?parent_id={job['id']}") == []


async def test_patch_is_stored_and_allowed_while_a_job_holds_the_volume(client: httpx.AsyncClient) -> None:
    path = f"{VOLUMES}/{(await create(client, 'one', labels={'a': 'b'}))['volume_id']}"
    await create(client, "two")
    autogrow = {"usage_above": 80, "percent": 12.5, "up_to": 2**40}

    changed = await client.patch(path, json={"name": "uno", "autogrow": autogrow})
    assert changed.status_code == 200, changed.text
    assert (await client.get(path)).json() == changed.json()
    assert (changed.json()["name"], changed.json()["labels"]) == ("uno", {"a": "b"})
    assert changed.json()["autogrow"] == autogrow
    assert changed.json()["state"] == "creating"

    assert (await client.patch(path, json={"name": "two"})).json()["code"] == "name-taken"
    assert (await client.patch(path, json={"autogrow": None})).json()["autogrow"] is None


UNSTORABLE = ["a\x00b", "\x00", "a\ud800", "\udfff", "a\x01", "\u202ea", "a\u0000"]


@pytest.mark.parametrize("unstorable", UNSTORABLE, ids=ascii)
async def test_characters_that_postgresql_cannot_store_are_rejected_in_bodies(
    services: Services, client: httpx.AsyncClient, unstorable: str
) -> None:
    volume_id = (await create(client, "one"))["volume_id"]
    headers = {"Content-Type": "application/json"}
    bodies: list[dict[str, Any]] = [
        {"name": unstorable, "size": 1},
        {"name": "a", "size": 1, "labels": {unstorable: "a"}},
        {"name": "a", "size": unstorable},
        {"name": "a", "size": 1, unstorable: 1},
        {"name": "a", "size": 1, "backend": unstorable},
        {"name": "a", "size": 1, "autogrow": {unstorable: 1}},
    ]
    if unstorable != "\u202ea":  # a label may have any value that can be stored
        bodies.append({"name": "a", "size": 1, "labels": {"a": unstorable}})

    for body in bodies:
        for method, path in (("POST", VOLUMES), ("PATCH", f"{VOLUMES}/{volume_id}")):
            response = await client.request(method, path, content=json.dumps(body), headers=headers)
            assert response.status_code == 422, (body, response.text)
            assert response.json()["request_id"]
    assert await count(services) == (1, 1)


@pytest.mark.parametrize(
    "query", ["name=%00", "label=a:%00", "label=%00:a", "cursor=%00", "kind=%00", "state=%00", "%00=1", "name=%ff"]
)
async def test_characters_that_postgresql_cannot_store_are_rejected_in_queries(
    client: httpx.AsyncClient, query: str
) -> None:
    for path in (VOLUMES, JOBS):
        assert (await client.get(f"{path}?{query}")).status_code == 422


async def test_rejected_request_changes_nothing(services: Services, client: httpx.AsyncClient) -> None:
    volume_id = (await create(client, "one"))["volume_id"]
    await make_available(services)
    before = (await client.get(f"{VOLUMES}/{volume_id}")).json()

    rejected = [
        await client.post(VOLUMES, json={"name": "one", "size": 1}),
        await client.post(VOLUMES, json={"name": "two", "size": 1, "backend": "tape"}),
        await client.post(f"{VOLUMES}/{volume_id}/expand", json={"to": 1}),
        await client.post(f"{VOLUMES}/{volume_id}/expand", json={"by": "64TiB"}),
        await client.post(f"{VOLUMES}/{volume_id}/expand", json={"percent": 1e308}),
        await client.post(f"{VOLUMES}/{UUID(int=0)}/expand", json={"by": 1}),
        await client.patch(f"{VOLUMES}/{UUID(int=0)}", json={"name": "two"}),
        await client.delete(f"{VOLUMES}/{UUID(int=0)}"),
        await client.post(f"{JOBS}/{UUID(int=0)}/retry"),
    ]

    assert [response.json()["code"] for response in rejected] == [
        "name-taken",
        "unknown-backend",
        "shrink-refused",
        "size-limit-exceeded",
        "invalid",
        "volume-not-found",
        "volume-not-found",
        "volume-not-found",
        "job-not-found",
    ]
    assert (await client.get(f"{VOLUMES}/{volume_id}")).json() == before
    assert await count(services) == (1, 1)


async def test_job_is_polled_until_its_end(
    settings: Settings, services: Services, client: httpx.AsyncClient, running_worker: RunningWorker
) -> None:
    job = await create(client, "one")
    first = await client.get(f"{JOBS}/{job['id']}")
    same = await client.get(f"{JOBS}/{job['id']}", headers={"If-None-Match": first.headers["etag"]})
    assert (first.json()["status"], same.status_code) == ("queued", 304)

    async with running_worker(settings):
        done = await client.get(
            f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20", "If-None-Match": first.headers["etag"]}
        )

    assert (done.status_code, done.json()["status"]) == (200, "succeeded")
    assert done.json()["result"] == {"volume_id": job["volume_id"], "size": 8192}
    assert "retry-after" not in done.headers
    assert done.headers["etag"] != first.headers["etag"]


async def test_post_with_prefer_wait_returns_the_succeeded_job(
    settings: Settings, client: httpx.AsyncClient, running_worker: RunningWorker
) -> None:
    async with running_worker(settings):
        response = await client.post(VOLUMES, json={"name": "a", "size": 8192}, headers={"Prefer": "wait=20"})
        assert (response.status_code, response.json()["status"]) == (202, "succeeded")
        path = f"{VOLUMES}/{response.json()['volume_id']}"

        response = await client.post(f"{path}/expand", json={"percent": 50}, headers={"Prefer": "wait=20"})
        assert (response.json()["status"], response.json()["result"]["size"]) == ("succeeded", 12288)

        response = await client.delete(path, headers={"Prefer": "wait=20"})
        assert response.json()["status"] == "succeeded"
        assert (await client.get(path)).json()["code"] == "volume-not-found"


async def test_wait_ends_after_the_preferred_time(client: httpx.AsyncClient) -> None:
    response = await client.post(VOLUMES, json={"name": "a", "size": 1}, headers={"Prefer": "wait=1"})

    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers["preference-applied"] == "wait=1"


async def test_wait_returns_when_another_client_cancels(client: httpx.AsyncClient) -> None:
    job = await create(client, "one")
    waiting = asyncio.create_task(client.get(f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20"}))
    await asyncio.sleep(0.2)
    cancelled = await client.post(f"{JOBS}/{job['id']}/cancel")

    assert cancelled.json()["status"] == "cancelled"
    assert (await waiting).json() == cancelled.json()


async def test_cancelled_creation_can_be_retried_once(client: httpx.AsyncClient) -> None:
    job = await create(client, "one")
    await client.post(f"{JOBS}/{job['id']}/cancel")
    assert (await client.get(f"{VOLUMES}/{job['volume_id']}")).json()["state"] == "error"
    grown = await client.post(f"{VOLUMES}/{job['volume_id']}/expand", json={"by": 1})
    assert grown.json()["code"] == "volume-unusable"

    retry = await client.post(f"{JOBS}/{job['id']}/retry")
    assert (retry.status_code, retry.json()["retry_of"]) == (202, job["id"])
    assert retry.json()["volume_id"] == job["volume_id"]

    again = await client.post(f"{JOBS}/{job['id']}/retry")
    assert (again.status_code, again.json()["code"]) == (409, "job-not-retryable")
    assert again.json()["job_id"] == retry.json()["id"]


async def test_api_is_ready_on_real_servers(client: httpx.AsyncClient) -> None:
    response = (await client.get("/readyz")).json()

    assert (response["status"], response["postgresql"], response["redis"]) == ("degraded", "ok", "ok")
    assert response["backends"] == {"memory": "no worker has it among its CISTERN_BACKENDS"}
    assert response["stats"]["queue_depth"] == 0
