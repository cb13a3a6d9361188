"""Snapshots of real files by real workers: a restore brings back the old data, and a clone is independent."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, sql, volume_row
from tests.integration.snapshot_builders import (
    a_snapshot,
    a_stored_volume,
    done,
    path,
    read,
    snapshot_row,
    states,
    write,
)

OLD, NEW = b"old" * (MIB // 3) + b"!", b"new" * (MIB // 3) + b"?"


@pytest.fixture
def on_disk(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a file backend instead of memory."""
    return settings.model_copy(update={"backends": {"disk": f"file:{tmp_path}/disk"}})


@pytest.fixture
async def services(on_disk: Settings) -> AsyncIterator[Services]:
    async with open_services(on_disk, adopt=True) as services:
        yield services


async def test_restore_after_overwrite_and_expand_has_old_data_and_new_size(
    services: Services, on_disk: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(on_disk):
        created = await done(services, await services.volumes.request_create(NewVolume("db", MIB)))
        volume_id = created.volume_id
        assert volume_id is not None
        write(services, volume_id, OLD)
        taken = await done(services, await services.snapshots.request_take(volume_id, "before"))
        assert taken.snapshot_id is not None
        write(services, volume_id, NEW)
        await done(services, await services.volumes.request_expand(volume_id, Growth(to=3 * MIB)))
        write(services, volume_id, NEW * 3)
        restored = await done(services, await services.snapshots.request_restore(taken.snapshot_id))

    assert read(services, volume_id) == OLD + bytes(2 * MIB)
    assert (await volume_row(services, volume_id))["size"] == 3 * MIB
    assert (await snapshot_row(services, taken.snapshot_id))["size"] == MIB
    assert (restored.total, restored.succeeded) == (MIB, MIB)
    assert restored.result is not None
    assert restored.result["size"] == 3 * MIB


async def test_clone_has_the_snapshots_data_and_is_independent(
    services: Services, on_disk: Settings, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, content=OLD, backend="disk")
    snapshot = await a_snapshot(services, volume)
    write(services, volume.id, NEW)
    async with running_worker(on_disk):
        new = NewVolume("clone", 2 * MIB)
        clone = await done(services, await services.snapshots.request_clone(snapshot.id, new))
        assert read(services, clone.volume_id) == OLD + bytes(MIB)
        write(services, clone.volume_id, b"mine")
        await done(services, await services.snapshots.request_restore(snapshot.id))
        assert read(services, volume.id) == OLD
        await done(services, await services.snapshots.request_delete(snapshot.id))
        await done(services, await services.volumes.request_delete(volume.id))

    assert read(services, clone.volume_id) == b"mine" + OLD[4:] + bytes(MIB)
    assert await states(services, clone) == ("available", None)
    assert not path(services, volume.id).parent.exists()


async def test_snapshot_can_be_restored_repeatedly(
    services: Services, on_disk: Settings, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, content=OLD, backend="disk")
    async with running_worker(on_disk):
        taken = await done(services, await services.snapshots.request_take(volume.id, "kept"))
        assert taken.snapshot_id is not None
        for _ in range(3):
            write(services, volume.id, NEW)
            await done(services, await services.snapshots.request_restore(taken.snapshot_id))
            assert read(services, volume.id) == OLD


async def test_concurrent_clones_by_two_workers_are_identical(
    services: Services, on_disk: Settings, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, content=OLD, backend="disk")
    snapshot = await a_snapshot(services, volume)
    async with running_worker(on_disk), running_worker(on_disk):
        requests = (services.snapshots.request_clone(snapshot.id, NewVolume(f"c{number}")) for number in range(5))
        jobs = await asyncio.gather(*requests)
        for job in jobs:
            await done(services, job)

    assert {read(services, job.volume_id) for job in jobs} == {OLD}
    assert {await states(services, job) for job in jobs} == {("available", "ready")}
    assert await sql(services, "SELECT max(attempt) FROM jobs") == [(1,)]


async def test_deleted_snapshot_leaves_nothing_on_disk(
    services: Services, on_disk: Settings, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, content=OLD, backend="disk")
    async with running_worker(on_disk):
        taken = await done(services, await services.snapshots.request_take(volume.id, "kept"))
        assert taken.snapshot_id is not None
        assert len([*path(services, volume.id).parent.rglob("*")]) == 3
        await done(services, await services.snapshots.request_delete(taken.snapshot_id))

    assert {found for found in path(services, volume.id).parent.rglob("*") if found.is_file()} == {
        path(services, volume.id)
    }
    assert read(services, volume.id) == OLD
