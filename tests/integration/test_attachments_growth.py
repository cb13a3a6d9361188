"""Autogrow of volumes with file systems: by what the node reports, not by the blocks of their files."""

import asyncio
from pathlib import Path
from uuid import UUID

from domain.bulk.expand import BulkExpandRequest, VolumePolicies
from domain.services import Services
from domain.settings import Settings
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.service import NewVolume
from tests.integration.bulk_builders import items
from tests.integration.conftest import RunningWorker
from tests.integration.host_builders import MIB, require_tools
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from tests.integration.job_builders import volume_row
from tests.integration.node_fixtures import NODE
from tests.integration.node_fixtures import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import node_settings as node_settings  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import services as services  # noqa: PLC0414 (a fixture)
from tests.integration.snapshot_builders import done
from tests.support.node import attachments_of, running_node
from worker.node.host.host import Host

SIZE, LIMIT = 64 * MIB, 1024 * MIB
AUTOGROW = {"usage_above": 80, "percent": 50, "up_to": LIMIT}


async def a_volume(services: Services, name: str, **autogrow: object) -> tuple[UUID, Path]:
    """Create a volume with ext4 by a job and attach it; return where it is mounted."""
    columns = {"filesystem": "ext4", "autogrow": AUTOGROW | autogrow}
    created = await done(services, await services.volumes.request_create(NewVolume(name, SIZE, columns=columns)))
    assert created.volume_id is not None
    new = NewAttachment(NODE, "test")
    attached = await done(services, await services.attachments.request_attach(created.volume_id, new))
    assert attached.result is not None
    return created.volume_id, Path(attached.result["path"])


async def detach(services: Services, volume_id: UUID) -> None:
    """Detach a volume from its only holder, whose end has the newest report."""
    [attachment] = await attachments_of(services, volume_id)
    await done(services, await services.attachments.request_detach(volume_id, attachment.id))


def fill(file: Path) -> None:
    try:
        with file.open("wb", buffering=0) as full:
            while True:
                full.write(b"x" * MIB)
    except OSError:
        pass


def use_all_inodes(directory: Path) -> None:
    try:
        for number in range(10**6):
            (directory / f"file-{number}").touch()
    except OSError:
        pass


async def test_autogrow_follows_the_file_system_and_not_the_blocks_of_its_file(
    services: Services, node_settings: Settings, host: Host, place: Path, running_worker: RunningWorker
) -> None:
    require_tools("mkfs.ext4")
    async with running_worker(node_settings), running_node(node_settings, host):
        volumes = {
            "emptied": await a_volume(services, "emptied"),
            "full": await a_volume(services, "full"),
            "many-files": await a_volume(services, "many-files", inodes_above=90),
            "many-files-unwatched": await a_volume(services, "many-files-unwatched"),
        }
        fill(volumes["emptied"][1] / "gone")
        (volumes["emptied"][1] / "gone").unlink()
        fill(volumes["full"][1] / "data")
        for name in ("many-files", "many-files-unwatched"):
            await asyncio.to_thread(use_all_inodes, volumes[name][1])
        for volume_id, _ in volumes.values():
            await detach(services, volume_id)
        blocks = (place / "volumes" / str(volumes["emptied"][0]) / "data").stat().st_blocks * 512

        job = await done(services, await services.bulk.request(BulkExpandRequest(VolumePolicies())))
        found = await items(services, job)

    codes = {name: found[volume_id].code for name, (volume_id, _) in volumes.items()}
    assert blocks > 0.8 * SIZE, "by its blocks it is filling"
    assert codes == {
        "emptied": "below-threshold",
        "full": "expanded",
        "many-files": "expanded",
        "many-files-unwatched": "below-threshold",
    }
    full = await volume_row(services, volumes["full"][0])
    assert (full["size"], full["filesystem_grown_to"], full["filesystem_error"]) == (96 * MIB, 96 * MIB, None)
