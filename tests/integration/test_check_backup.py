"""An old database with a newer disk: after `cistern check --repair` every volume can be used again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.embedded import EmbeddedServers
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.check_builders import findings, folder, on_disk, repair_all
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, sql
from tests.integration.snapshot_builders import claimed, done, read, write
from tests.support.databases import run

FATES = ["untouched", "grown", "restored", "snapshotted", "unsnapshotted", "deleted"]


@pytest.fixture
def backup(servers: EmbeddedServers) -> Iterator[str]:
    """The name of a database for a copy, dropped at the end."""
    name = f"backup_{uuid4().hex}"
    yield name
    run(servers.database_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def copy_database(servers: EmbeddedServers, source: str, target: str) -> None:
    """Replace one database by a copy of another, as restoring a dump would."""
    run(servers.database_url, f"DROP DATABASE IF EXISTS {target} WITH (FORCE)")
    run(
        servers.database_url,
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{source}'",
        f"CREATE DATABASE {target} TEMPLATE {source} STRATEGY FILE_COPY",
    )


async def work_before_backup(services: Services) -> dict[str, tuple[UUID, UUID]]:
    """Create volumes with bytes and a snapshot, named after what happens to them after the backup."""
    volumes = {}
    for name in FATES:
        created = await done(services, await services.volumes.request_create(NewVolume(name, MIB)))
        assert created.volume_id is not None
        write(services, created.volume_id, name.encode())
        taken = await done(services, await services.snapshots.request_take(created.volume_id, "first"))
        assert taken.snapshot_id is not None
        volumes[name] = (created.volume_id, taken.snapshot_id)
    return volumes


async def work_after_backup(services: Services, volumes: dict[str, tuple[UUID, UUID]]) -> UUID:
    """Make changes that the backup does not contain; return the id of a new volume."""
    for size in (2 * MIB, 3 * MIB):
        await done(services, await services.volumes.request_expand(volumes["grown"][0], Growth(to=size)))
    for _ in range(3):
        await done(services, await services.snapshots.request_restore(volumes["restored"][1]))
    await done(services, await services.snapshots.request_take(volumes["snapshotted"][0], "second"))
    for name in ("unsnapshotted", "deleted"):
        await done(services, await services.snapshots.request_delete(volumes[name][1]))
    await done(services, await services.volumes.request_delete(volumes["deleted"][0]))
    created = await done(services, await services.volumes.request_create(NewVolume("new", MIB)))
    assert created.volume_id is not None
    write(services, created.volume_id, b"new")
    await done(services, await services.snapshots.request_take(created.volume_id, "first"))
    return created.volume_id


async def use_everything(services: Services) -> None:
    """Expand, snapshot and delete available volumes; delete the others."""
    for volume in await sql(services, "SELECT id, state, size FROM volumes"):
        if volume.state == "available":
            await done(services, await services.volumes.request_expand(volume.id, Growth(to=volume.size + MIB)))
            await done(services, await services.snapshots.request_take(volume.id, "last"))
        for snapshot in await sql(services, "SELECT id FROM snapshots WHERE volume_id = :id", id=volume.id):
            await done(services, await services.snapshots.request_delete(snapshot.id))
        await done(services, await services.volumes.request_delete(volume.id))


async def carry_on(services: Services, untouched: UUID, waiting: Job, at_work: Job) -> None:
    """Finish the jobs that were live at the time of the backup, and go on using their volumes."""
    assert (await done(services, waiting)).status == "succeeded"
    await done(services, await services.volumes.request_expand(untouched, Growth(to=6 * MIB)))
    await done(services, at_work)
    assert at_work.volume_id is not None
    await done(services, await services.volumes.request_expand(at_work.volume_id, Growth(to=2 * MIB)))


async def assert_rows_match_the_disk(services: Services, volumes: dict[str, tuple[UUID, UUID]], new: UUID) -> None:
    rows = await sql(services, "SELECT id, name, state, size FROM volumes")
    by_name = {row.name: (row.id, row.state, row.size) for row in rows}
    assert by_name[f"recovered-{new}"] == (new, "available", MIB)
    assert read(services, new)[:3] == b"new"
    assert by_name["grown"][1:] == ("available", 3 * MIB)
    assert by_name["deleted"][1:] == ("error", MIB)
    assert read(services, volumes["restored"][0])[:8] == b"restored"


@pytest.mark.slow
async def test_repair_after_restoring_an_old_database_makes_every_volume_usable(
    settings: Settings, servers: EmbeddedServers, backup: str, running_worker: RunningWorker, tmp_path: Path
) -> None:
    disk = on_disk(settings, tmp_path)
    live = disk.database_url.partition("?")[0].rpartition("/")[2]
    async with open_services(disk, adopt=True) as services:
        async with running_worker(disk):
            volumes = await work_before_backup(services)
        # One job is queued and one is running at the time of the backup.
        waiting = await services.volumes.request_expand(volumes["untouched"][0], Growth(to=5 * MIB))
        at_work = await services.volumes.request_create(NewVolume("at work", MIB))
        await claimed(services, at_work)
    await asyncio.to_thread(copy_database, servers, live, backup)
    async with open_services(disk, adopt=True) as services:
        async with running_worker(disk):
            new = await work_after_backup(services, volumes)
            await carry_on(services, volumes["untouched"][0], waiting, at_work)
        assert await findings(services) == []
    await asyncio.to_thread(copy_database, servers, backup, live)
    async with open_services(disk, adopt=True) as services:
        await sql(services, "UPDATE jobs SET lease_expires_at = now() - interval '1 hour' WHERE status = 'running'")
        found = {code for code, _, _ in await findings(services)}
        assert found == {"no-worker", "fence-behind", "size-differs", "data-missing", "no-row"}
        await repair_all(services)
        await assert_rows_match_the_disk(services, volumes, new)
        async with running_worker(disk):
            for job in (waiting, at_work):
                await done(services, job)
            assert await findings(services) == []
            await use_everything(services)
        assert await findings(services) == []
        assert await sql(services, "SELECT count(*) FROM volumes") == [(0,)]
        assert not folder(services, new).exists()
