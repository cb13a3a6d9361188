"""What schedules are for, from the request to the disk: volumes that grow, and snapshots of which three are kept."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.check_builders import told
from tests.integration.conftest import RunningWorker
from tests.integration.disk_builders import BY_THREE, FIFTH, TO_ELEVEN, a_volume, size
from tests.integration.job_builders import sql, until
from tests.integration.schedule_builders import SCHEDULES
from tests.support.bulk import MIB, ended

#: What a fresh installation has.
NIGHTLY_EXPAND = {
    "name": "nightly-expand",
    "cron": "0 2 * * *",
    "action": "bulk.expand",
    "params": {"policy": "autogrow"},
}


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    on_disk = settings.model_copy(update={"backends": {"local": f"file:{tmp_path}/volumes"}})
    async with open_services(on_disk) as services, services.watcher.watching():
        yield services


async def made(client: httpx.AsyncClient, schedule: dict[str, Any]) -> str:
    answer = await client.post(SCHEDULES, json=schedule)
    assert answer.status_code == 201, answer.text
    return f"{SCHEDULES}/{answer.json()['id']}"


async def ran(client: httpx.AsyncClient, services: Services, schedule: str) -> dict[str, Any]:
    """Run a schedule now; its job, when that and all that it brought about have ended."""
    answer = await client.post(f"{schedule}/run", headers={"Prefer": "wait=30"})
    assert answer.status_code == 202, answer.text

    async def all_is_quiet() -> bool:
        return await sql(services, "SELECT id FROM jobs WHERE finished_at IS NULL") == []

    await until(all_is_quiet)
    job: dict[str, Any] = answer.json()
    return job


async def test_the_nightly_run_grows_what_its_own_policy_says_and_tells_why_it_left_the_others(
    client: httpx.AsyncClient, services: Services, running_worker: RunningWorker
) -> None:
    async with running_worker(services.settings):
        nightly = await made(client, NIGHTLY_EXPAND)
        filling = [
            await a_volume(services, f"filling-{n}", own, used=9) for n, own in enumerate((FIFTH, BY_THREE, TO_ELEVEN))
        ]
        roomy = [await a_volume(services, f"roomy-{n}", FIFTH, used=7) for n in range(3)]
        unasked = [await a_volume(services, f"unasked-{n}", used=9) for n in range(3)]
        job = await ran(client, services, nightly)

    assert [await size(services, volume_id) for volume_id in filling + roomy + unasked] == [12, 13, 11, *[10] * 6]
    items = (await client.get(f"/api/v1/jobs/{job['id']}/items")).json()["items"]
    assert {item["volume_id"]: (item["code"], item["used"] // MIB) for item in items} == (
        {str(volume_id): ("expanded", 9) for volume_id in filling}
        | {str(volume_id): ("below-threshold", 7) for volume_id in roomy}
        | {str(volume_id): ("no-policy", 9) for volume_id in unasked}
    )
    (run,) = (await client.get(nightly)).json()["last_runs"]
    assert (run["outcome"], run["job_id"], run["job_status"]) == ("started", job["id"], "succeeded")


async def test_of_five_runs_that_keep_three_the_last_three_are_left_and_what_was_made_by_hand(
    client: httpx.AsyncClient, services: Services, running_worker: RunningWorker
) -> None:
    async with running_worker(services.settings):
        volumes = [await a_volume(services, f"one-{n}") for n in range(4)]
        for volume_id in volumes:
            await ended(services, await services.snapshots.request_take(volume_id, "by-hand"))
        params = {"name": "nightly", "keep_last": 3}
        nightly = await made(client, NIGHTLY_EXPAND | {"action": "bulk.snapshot", "params": params})
        jobs = [await ran(client, services, nightly) for _ in range(5)]

    assert [job["status"] for job in jobs] == ["succeeded"] * 5
    for volume_id in volumes:
        kept = (await client.get(f"/api/v1/volumes/{volume_id}/snapshots")).json()["items"]
        taken = [job["params"]["snapshot_name"] for job in jobs]
        assert [snapshot["name"] for snapshot in kept] == [*reversed(taken[2:]), "by-hand"]
        assert {snapshot["state"] for snapshot in kept} == {"ready"}
    assert await told(services) == []


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
async def test_snapshots_that_cannot_be_asked_for_are_refused_by_the_parameters_name(
    client: httpx.AsyncClient, params: dict[str, Any], field: str
) -> None:
    answer = await client.post(SCHEDULES, json=NIGHTLY_EXPAND | {"action": "bulk.snapshot", "params": params})

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
    assert (await client.get(SCHEDULES)).json()["items"] == []
