"""File systems in real files, through the API: each is as large as the volume says, whatever was done before."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import volume_row
from tests.support.bulk import MIB
from tests.support.filesystems import HAS_TOOLS, run, sound_ext4_bytes

pytestmark = pytest.mark.skipif(not HAS_TOOLS, reason="e2fsprogs is not installed")
VOLUMES, WAIT = "/api/v1/volumes", {"Prefer": "wait=30"}


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"backends": {"files": f"file:{tmp_path}/volumes"}})


@pytest.fixture
async def services(own_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(own_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a request and return its succeeded job."""
    job: dict[str, Any] = (await client.post(path, json=body, headers=WAIT)).json()
    assert job.get("status") == "succeeded", job
    return job


async def create(client: httpx.AsyncClient, **members: Any) -> tuple[str, Path]:
    """Create a volume of 64 MiB with ext4, or a clone; return its id and its file."""
    body = {"name": "one", "size": 64 * MIB, "filesystem": "ext4", **members}
    volume_id = (await post(client, VOLUMES, body))["volume_id"]
    return volume_id, Path((await client.get(f"{VOLUMES}/{volume_id}")).json()["path"])


async def grown_to(services: Services, volume_id: str) -> int:
    volume = await volume_row(services, UUID(volume_id))
    return int(volume["filesystem_grown_to"])


async def test_ext4_has_the_size_of_its_volume_after_every_operation(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        volume_id, data = await create(client)
        assert sound_ext4_bytes(data) == data.stat().st_size == await grown_to(services, volume_id) == 64 * MIB
        snapshot_id = (await post(client, f"{VOLUMES}/{volume_id}/snapshots", {"name": "s"}))["snapshot_id"]
        await post(client, f"{VOLUMES}/{volume_id}/expand", {"to": 128 * MIB})
        assert sound_ext4_bytes(data) == data.stat().st_size == await grown_to(services, volume_id) == 128 * MIB
        await post(client, f"{VOLUMES}/expand", {"to": 192 * MIB})
        assert sound_ext4_bytes(data) == data.stat().st_size == await grown_to(services, volume_id) == 192 * MIB

        await post(client, f"/api/v1/snapshots/{snapshot_id}/restore", {})
        assert sound_ext4_bytes(data) == data.stat().st_size == await grown_to(services, volume_id) == 192 * MIB
        clone_id, clone = await create(client, name="clone", from_snapshot=snapshot_id, size=96 * MIB)
        assert sound_ext4_bytes(clone) == clone.stat().st_size == await grown_to(services, clone_id) == 96 * MIB


@pytest.mark.parametrize("bulk", [False, True])
async def test_file_system_with_errors_is_left_alone_and_grows_once_it_is_repaired(
    client: httpx.AsyncClient,
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    *,
    bulk: bool,
) -> None:
    async with running_worker(own_settings):
        volume_id, data = await create(client)
        whole = data.read_bytes()
        with data.open("r+b") as file:
            file.write(b"x" * 64 * 1024)  # the superblock, which another program has overwritten
        await post(client, f"{VOLUMES}/expand" if bulk else f"{VOLUMES}/{volume_id}/expand", {"to": 128 * MIB})

        shown = (await client.get(f"{VOLUMES}/{volume_id}")).json()
        assert (shown["state"], shown["size"]) == ("available", 128 * MIB)
        assert shown["filesystem_error"].startswith("e2fsck ended with")
        assert (await grown_to(services, volume_id), data.stat().st_size) == (64 * MIB, 128 * MIB)

        with data.open("r+b") as file:
            file.write(whole[: 64 * 1024])
        await post(client, f"{VOLUMES}/{volume_id}/expand", {"to": 128 * MIB})

        assert (await client.get(f"{VOLUMES}/{volume_id}")).json()["filesystem_error"] is None
        assert sound_ext4_bytes(data) == await grown_to(services, volume_id) == 128 * MIB


async def test_files_of_a_volume_outlive_its_growth(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"record " * 100_000)
    async with running_worker(own_settings):
        volume_id, data = await create(client)
        run("debugfs", "-w", "-R", f"write {kept} kept", data)
        await post(client, f"{VOLUMES}/{volume_id}/expand", {"to": 256 * MIB})
    run("debugfs", "-R", f"dump kept {tmp_path / 'found'}", data)

    assert (tmp_path / "found").read_bytes() == kept.read_bytes()
    assert await grown_to(services, volume_id) == 256 * MIB
