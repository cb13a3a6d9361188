"""Schedules from the request to the disk: volumes grow by their policies, and the last three snapshots are kept."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.check_builders import findings
from tests.integration.conftest import RunningWorker
from tests.integration.disk_builders import BY_THREE, FIFTH, TO_ELEVEN, a_volume, size
from tests.integration.job_builders import sql, until
from tests.integration.schedule_builders import SCHEDULES
from tests.support.bulk import MIB, ended

#: The schedule of a new installation.
NIGHTLY_EXPAND = {
    "name": "nightly-expand",
    "cron": "0 2 * * *",
    "action": "bulk.expand",
    "params": {"policy": "autogrow"},
}


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    on_disk = settings.model_copy(update={"backends": {"local": f"file:{tmp_path}/volumes"}})
    async with open_services(on_disk, adopt=True) as services, services.watcher.watching():
        yield services


async def create_schedule(client: httpx.AsyncClient, schedule: dict[str, Any]) -> str:
    answer = await client.post(SCHEDULES, json=schedule)
    assert answer.status_code == 201, answer.text
    return f"{SCHEDULES}/{answer.json()['id']}"


async def run_now(client: httpx.AsyncClient, services: Services, schedule: str) -> dict[str, Any]:
    """Run a schedule now, wait until its job and all follow-up jobs have ended, and return its job."""
    answer = await client.post(f"{schedule}/run", headers={"Prefer": "wait=30"})
    assert answer.status_code == 202, answer.text

    async def no_live_jobs() -> bool:
        return await sql(services, "SELECT id FROM jobs WHERE finished_at IS NULL") == []

    await until(no_live_jobs)
    job: dict[str, Any] = answer.json()
    return job


async def test_nightly_run_grows_volumes_by_their_own_policies(
    client: httpx.AsyncClient, services: Services, running_worker: RunningWorker
) -> None:
    async with running_worker(services.settings):
        nightly = await create_schedule(client, NIGHTLY_EXPAND)
        filling = [
            await a_volume(services, f"filling-{n}", own, used=9) for n, own in enumerate((FIFTH, BY_THREE, TO_ELEVEN))
        ]
        roomy = [await a_volume(services, f"roomy-{n}", FIFTH, used=7) for n in range(3)]
        without_policy = [await a_volume(services, f"without-policy-{n}", used=9) for n in range(3)]
        job = await run_now(client, services, nightly)

    assert [await size(services, volume_id) for volume_id in filling + roomy + without_policy] == [
        12,
        13,
        11,
        *[10] * 6,
    ]
    items = (await client.get(f"/api/v1/jobs/{job['id']}/items")).json()["items"]
    assert {item["volume_id"]: (item["code"], item["used"] // MIB) for item in items} == (
        {str(volume_id): ("expanded", 9) for volume_id in filling}
        | {str(volume_id): ("below-threshold", 7) for volume_id in roomy}
        | {str(volume_id): ("no-policy", 9) for volume_id in without_policy}
    )
    (run,) = (await client.get(nightly)).json()["last_runs"]
    assert (run["outcome"], run["job_id"], run["job_status"]) == ("started", job["id"], "succeeded")


async def test_last_three_of_five_runs_and_manual_snapshots_are_kept(
    client: httpx.AsyncClient, services: Services, running_worker: RunningWorker
) -> None:
    async with running_worker(services.settings):
        volumes = [await a_volume(services, f"one-{n}") for n in range(4)]
        for volume_id in volumes:
            await ended(services, await services.snapshots.request_take(volume_id, "by-hand"))
        params = {"name": "nightly", "keep_last": 3}
        nightly = await create_schedule(client, NIGHTLY_EXPAND | {"action": "bulk.snapshot", "params": params})
        jobs = [await run_now(client, services, nightly) for _ in range(5)]

    assert [job["status"] for job in jobs] == ["succeeded"] * 5
    for volume_id in volumes:
        kept = (await client.get(f"/api/v1/volumes/{volume_id}/snapshots")).json()["items"]
        taken = [job["params"]["snapshot_name"] for job in jobs]
        assert [snapshot["name"] for snapshot in kept] == [*reversed(taken[2:]), "by-hand"]
        assert {snapshot["state"] for snapshot in kept} == {"ready"}
    assert await findings(services) == []


async def test_runs_of_two_schedules_with_one_name_in_the_same_millisecond_both_succeed(
    client: httpx.AsyncClient, services: Services, running_worker: RunningWorker
) -> None:
    async with running_worker(services.settings):
        await a_volume(services, "kept", FIFTH, used=1)
        for number in range(2):
            await create_schedule(
                client,
                {
                    "name": f"schedule-{number}",
                    "cron": "* * * * *",
                    "action": "bulk.snapshot",
                    "params": {"name": "nightly"},
                },
            )
        await sql(services, "UPDATE schedules SET next_run_at = date_trunc('minute', now())")
        await until(lambda: _all_have_run(services))

    assert (
        await sql(services, "SELECT status, succeeded FROM jobs WHERE kind = 'bulk.snapshot'") == [("succeeded", 1)] * 2
    )
    assert await sql(services, "SELECT count(DISTINCT name) FROM snapshots WHERE name LIKE 'nightly-%'") == [(2,)]


async def _all_have_run(services: Services) -> bool:
    ended = "SELECT count(*) FROM jobs WHERE kind = 'bulk.snapshot' AND finished_at IS NOT NULL"
    return await sql(services, ended) == [(2,)]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "params.name"),
        ({"name": "nightly", "keep_last": 0}, "params.keep_last"),
        ({"name": "nightly", "keep_days": "7"}, "params.keep_days"),
        ({"name": "nightly", "backend": "nowhere"}, "params.backend"),
        ({"name": "nightly", "by": "1MiB"}, "params.by"),
        ({"name": "nightly", "max_concurrent": 101}, "params.max_concurrent"),
    ],
)
async def test_invalid_snapshot_schedule_is_refused_with_its_field(
    client: httpx.AsyncClient, params: dict[str, Any], field: str
) -> None:
    answer = await client.post(SCHEDULES, json=NIGHTLY_EXPAND | {"action": "bulk.snapshot", "params": params})

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
    assert (await client.get(SCHEDULES)).json()["items"] == []
