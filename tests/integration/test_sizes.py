"""Sizes are multiples of 4096 bytes in row, file, ledger and answer alike; odd ones from before keep working."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.check_builders import on_disk, repair_all
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume
from tests.support.bulk import MIB

VOLUMES, WAIT = "/api/v1/volumes", {"Prefer": "wait=30"}
ODD = 1000


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    return on_disk(settings, tmp_path)


@pytest.fixture
async def services(own_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(own_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a request and return its ended job."""
    job: dict[str, Any] = (await client.post(path, json=body, headers=WAIT)).json()
    assert job["status"] == "succeeded", job
    return job


async def size(client: httpx.AsyncClient, volume_id: object) -> int:
    """The size of a volume in the answer, after checking that its file has the same."""
    volume = (await client.get(f"{VOLUMES}/{volume_id}")).json()
    assert Path(volume["path"]).stat().st_size == volume["size"]
    return int(volume["size"])


async def test_row_file_ledger_and_answer_have_the_same_rounded_size(
    client: httpx.AsyncClient, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        job = await post(client, VOLUMES, {"name": "one", "size": ODD})
        one = job["volume_id"]
        assert (job["params"]["size"], job["result"]["size"], await size(client, one)) == (4096, 4096, 4096)

        job = await post(client, f"{VOLUMES}/{one}/expand", {"percent": 33})
        assert (job["params"]["to_size"], job["result"]["size"], await size(client, one)) == (8192, 8192, 8192)

        job = await post(client, f"{VOLUMES}/expand", {"percent": 33, "step": 1, "up_to": 13_000})
        (item,) = (await client.get(f"/api/v1/jobs/{job['id']}/items")).json()["items"]
        assert (item["from_size"], item["to_size"], await size(client, one)) == (8192, 12288, 12288)

        snapshot = (await post(client, f"{VOLUMES}/{one}/snapshots", {"name": "kept"}))["snapshot_id"]
        clone = await post(client, VOLUMES, {"name": "two", "from_snapshot": snapshot, "size": 13_000})
        assert (clone["params"]["size"], await size(client, clone["volume_id"])) == (16384, 16384)
        await post(client, f"/api/v1/snapshots/{snapshot}/restore", {})
        assert await size(client, one) == 12288


async def test_volume_grows_by_its_policy_to_whole_blocks(
    client: httpx.AsyncClient, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        policy = {"usage_above": 80, "percent": 33, "up_to": MIB + 2 * 4096 + ODD}
        one = (await post(client, VOLUMES, {"name": "one", "size": MIB, "autogrow": policy}))["volume_id"]
        volume = (await client.get(f"{VOLUMES}/{one}")).json()
        Path(volume["path"]).write_bytes(b"x" * MIB)
        await post(client, f"{VOLUMES}/expand", {"policy": "autogrow"})

        assert volume["autogrow"]["up_to"] == MIB + 2 * 4096
        assert await size(client, one) == MIB + 2 * 4096


async def test_volume_of_an_odd_size_from_before_keeps_working(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    old = await a_stored_volume(services, size=ODD, content=b"old", backend="disk")
    snapshot = await a_snapshot(services, old)
    async with running_worker(own_settings):
        await post(client, f"{VOLUMES}/{old.id}/snapshots", {"name": "taken"})
        await post(client, f"/api/v1/snapshots/{snapshot.id}/restore", {})
        assert await size(client, old.id) == ODD
        clone = await post(client, VOLUMES, {"name": "clone", "from_snapshot": str(snapshot.id)})
        assert await size(client, clone["volume_id"]) == 4096
        await post(client, f"{VOLUMES}/{old.id}/expand", {"to": ODD})
        assert await size(client, old.id) == 4096

    path = str(services.volumes.path(await services.volumes.get(old.id, project_id=DEFAULT_PROJECT)))
    assert Path(path).read_bytes() == b"old".ljust(4096, b"\0")


async def test_volume_of_an_odd_size_is_adopted_and_then_grows(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    adopted = await a_stored_volume(services, size=ODD, backend="disk")
    await sql(services, "DELETE FROM volumes")
    assert await repair_all(services) != []
    assert await size(client, adopted.id) == ODD

    async with running_worker(own_settings):
        await post(client, f"{VOLUMES}/expand", {"percent": 33, "step": 1})

    assert await size(client, adopted.id) == 4096


async def test_room_is_asked_for_the_rounded_size(services: Services) -> None:
    job = await services.volumes.request_create(NewVolume("one", ODD))

    assert (
        job.params["size"],
        (await services.volumes.get(UUID(str(job.volume_id)), project_id=DEFAULT_PROJECT)).size,
    ) == (4096, 4096)
