"""Bulk expansions over HTTP, on real servers: progress, ledger, retry, dry run; and the route of version 0."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from tests.acceptance import journal
from tests.integration.bulk_builders import fail_for
from tests.integration.conftest import RunningWorker
from tests.support.bulk import MIB, add_volumes, most_at_once

EXPAND = "/api/v1/volumes/expand"
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
async def services(bulk_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(bulk_settings, adopt=True) as services:
        yield services


async def ledger(client: httpx.AsyncClient, job: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        path = f"/api/v1/jobs/{job['id']}/items?limit=40{query}"
        page = (await client.get(f"{path}{cursor and '&cursor='}{cursor}")).json()
        items += page["items"]
        cursor = page["next_cursor"]
    return items


async def test_ledger_has_the_failures_and_a_retry_covers_only_them(
    client: httpx.AsyncClient,
    services: Services,
    bulk_settings: Settings,
    running_worker: RunningWorker,
    tmp_path: Path,
) -> None:
    volumes = sorted(await add_volumes(services, 150, backend="null"))
    failing = [volumes[3], volumes[70], volumes[149]]
    fail_for(tmp_path, "expand", failing)
    async with running_worker(bulk_settings):
        response = await client.post(EXPAND, json={"by": "1MiB", "max_concurrent": 7}, headers=WAIT)

        job = response.json()
        assert (response.status_code, job["status"], job["error"]["code"]) == (202, "partial", "items-failed")
        counts = {"unit": "volumes", "total": 150, "succeeded": 147, "failed": 3, "skipped": 0}
        assert job["progress"].items() >= counts.items()
        items = await ledger(client, job)
        assert [item["volume_id"] for item in items] == [str(volume_id) for volume_id in volumes]
        failed = await ledger(client, job, "&status=failed")
        assert [item["volume_id"] for item in failed] == [str(volume_id) for volume_id in failing]
        assert {(item["code"], item["from_size"], item["to_size"]) for item in failed} == {
            ("storage-full", MIB, 2 * MIB)
        }
        assert 1 < most_at_once(journal.read(tmp_path / "journal")) <= 7

        lanes = (await client.get(f"/api/v1/jobs?parent_id={job['id']}")).json()["items"]
        assert {(lane["kind"], lane["params"]["slots"]) for lane in lanes} == {("bulk.lane", 1)}
        rejected = await client.post(f"/api/v1/jobs/{lanes[0]['id']}/retry")
        assert (rejected.status_code, rejected.json()["code"]) == (409, "job-not-retryable")

        fail_for(tmp_path, "expand", [])
        retry = (await client.post(f"/api/v1/jobs/{job['id']}/retry", headers=WAIT)).json()

    assert (retry["status"], retry["progress"]["total"], retry["retry_of"]) == ("succeeded", 3, job["id"])
    assert [item["code"] for item in await ledger(client, retry)] == ["expanded"] * 3


async def test_progress_is_reported_live_and_a_lane_cannot_be_cancelled(
    client: httpx.AsyncClient,
    services: Services,
    bulk_settings: Settings,
    running_worker: RunningWorker,
    tmp_path: Path,
) -> None:
    await add_volumes(services, 30, backend="null")
    (tmp_path / "gate").touch()
    async with running_worker(bulk_settings):
        job = (await client.post(EXPAND, json={"percent": 100, "max_concurrent": 3})).json()
        path = f"/api/v1/jobs/{job['id']}"
        async with asyncio.timeout(30):
            while (await client.get(path)).json()["progress"] is None:
                await asyncio.sleep(0.02)
        planned = await client.get(path)
        counts = {"unit": "volumes", "total": 30, "succeeded": 0, "failed": 0, "skipped": 0}
        assert planned.json()["progress"].items() >= counts.items()
        lane = (await client.get(f"/api/v1/jobs?parent_id={job['id']}")).json()["items"][0]
        rejected = await client.post(f"/api/v1/jobs/{lane['id']}/cancel")
        assert (rejected.status_code, rejected.json()["code"]) == (409, "child-job")
        assert rejected.json()["job_id"] == job["id"]

        (tmp_path / "gate").unlink()
        ended = await client.get(path, headers=WAIT | {"If-None-Match": planned.headers["etag"]})

    assert (ended.status_code, ended.json()["status"], ended.json()["progress"]["succeeded"]) == (200, "succeeded", 30)


async def test_unknown_id_is_in_the_ledger_and_an_empty_list_selects_nothing(
    client: httpx.AsyncClient, services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    async with running_worker(bulk_settings):
        unknown_id = str(UUID(int=7))
        listed = await client.post(EXPAND, json={"by": 1, "ids": [unknown_id, str(volume_id)]}, headers=WAIT)
        empty = await client.post(EXPAND, json={"by": 1, "ids": []}, headers=WAIT)

    codes = {item["volume_id"]: item["code"] for item in await ledger(client, listed.json())}
    assert codes == {unknown_id: "volume-gone", str(volume_id): "expanded"}
    assert (empty.json()["status"], empty.json()["progress"]["total"]) == ("succeeded", 0)


async def test_dry_run_plans_from_measurements_and_stores_nothing(
    client: httpx.AsyncClient, services: Services
) -> None:
    await add_volumes(services, 1200, backend="null", labels={"tier": "gold"}, used=MIB)
    body = {"percent": 50, "labels": {"tier": "gold"}, "usage_above": 80, "step": 1, "dry_run": True}
    plan = (await client.post(EXPAND, json=body, headers={"Idempotency-Key": "not stored"})).json()

    assert (plan["total"], plan["grows"], plan["bytes"]) == (1200, 1200, 600 * MIB)
    assert (len(plan["items"]), plan["truncated"]) == (1000, True)
    assert (await client.get("/api/v1/jobs")).json()["items"] == []
    accepted = await client.post(EXPAND, json=body | {"dry_run": False}, headers={"Idempotency-Key": "not stored"})
    assert accepted.status_code == 202


async def test_version_0_expands_all_volumes_and_waits(
    client: httpx.AsyncClient,
    services: Services,
    bulk_settings: Settings,
    running_worker: RunningWorker,
    tmp_path: Path,
) -> None:
    volumes = await add_volumes(services, 20, backend="null", size=100 * MIB)
    fail_for(tmp_path, "expand", volumes[:1])
    async with running_worker(bulk_settings):
        response = await client.post("/api/v0/volumes/expand", json={"percent": 10})

    assert (response.status_code, response.json()["status"], response.json()["progress"]["succeeded"]) == (
        200,
        "partial",
        19,
    )
    sizes = [item["size"] for item in (await client.get("/api/v0/volumes")).json()["items"]]
    assert sorted(sizes) == [100 * MIB, *[110 * MIB] * 19]


async def test_version_0_request_whose_job_fails_is_a_424_with_the_error(
    client: httpx.AsyncClient,
    services: Services,
    bulk_settings: Settings,
    running_worker: RunningWorker,
    tmp_path: Path,
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    fail_for(tmp_path, "expand", [volume_id])
    async with running_worker(bulk_settings):
        response = await client.post(f"/api/v0/volumes/{volume_id}/expand", json={"by": 1})

    problem = response.json()
    assert (response.status_code, problem["code"], problem["job_status"]) == (424, "job-failed", "failed")
    assert problem["error"]["code"] == "storage-full"
    assert (await client.get(f"/api/v1/jobs/{problem['job_id']}")).json()["status"] == "failed"
