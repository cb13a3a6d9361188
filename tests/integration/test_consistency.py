"""What snapshots are worth, on a file system that cannot share blocks: of one volume, of many, and of clones."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.attachments.model import Attachment, AttachmentState, Mode
from domain.volumes.model import Volume
from domain.volumes.service import NewVolume
from tests.integration.check_builders import findings, folder, on_disk
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, ended, sql
from tests.integration.snapshot_builders import a_stored_volume, carried_out, path, snapshot_row


@pytest.fixture
def disk(settings: Settings, tmp_path: Path) -> Settings:
    return on_disk(settings, tmp_path)


@pytest.fixture
async def services(disk: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    """Services on a file system without shared blocks, whatever the temporary directory is on."""
    monkeypatch.setattr("domain.storage.file.disk._share", lambda *_: False)
    async with open_services(disk, adopt=True) as services:
        yield services


@pytest.fixture
async def volume(services: Services) -> Volume:
    return await a_stored_volume(services, backend="disk", content=b"bytes")


@contextmanager
def opened(services: Services, volume: Volume) -> Iterator[None]:
    """Have a volume open for writing, as a loop device has it."""
    handle = os.open(path(services, volume.id), os.O_RDWR)
    try:
        yield
    finally:
        os.close(handle)


async def attach(services: Services, volume: Volume) -> None:
    """Attach a volume on a node that is another host."""
    columns = {"volume_id": volume.id, "project_id": DEFAULT_PROJECT, "node": "elsewhere", "holder": "me"}
    row = Attachment(id=uuid7(), mode=Mode.READ_WRITE, state=AttachmentState.ATTACHED, generation=1, **columns)
    async with services.database.transaction() as session:
        session.add(row)


async def take(services: Services, volume: Volume, *, allow_torn: bool = False) -> Job:
    job = await services.snapshots.request_take(volume.id, f"taken-{allow_torn}", allow_torn=allow_torn)
    return await carried_out(services, job)


async def test_snapshot_of_a_volume_that_nobody_has_open_is_as_good_as_the_application_left_it(
    services: Services, volume: Volume
) -> None:
    job = await take(services, volume)

    assert (await snapshot_row(services, job.snapshot_id))["consistency"] == "application"
    assert (job.result or {})["consistency"] == "application"


async def test_copy_of_an_open_volume_is_recorded_as_copied_and_only_made_if_it_may_be(
    services: Services, disk: Settings, volume: Volume, running_worker: RunningWorker
) -> None:
    with opened(services, volume):
        async with running_worker(disk):
            refused = await ended(services, (await services.snapshots.request_take(volume.id, "refused")).id)
            allowed = await services.snapshots.request_take(volume.id, "allowed", allow_torn=True)
            taken = await ended(services, allowed.id)

    assert (refused.status, (refused.error or {})["code"]) == ("failed", "snapshot-torn")
    assert (await snapshot_row(services, refused.snapshot_id))["consistency"] is None
    assert taken.status == "succeeded", taken.error
    assert (await snapshot_row(services, taken.snapshot_id))["consistency"] == "copied"


@pytest.mark.parametrize("allow_torn", [False, True])
async def test_attached_volume_counts_as_open_although_the_worker_is_on_another_host(
    services: Services, disk: Settings, volume: Volume, running_worker: RunningWorker, *, allow_torn: bool
) -> None:
    await attach(services, volume)
    async with running_worker(disk):
        requested = await services.snapshots.request_take(volume.id, "taken", allow_torn=allow_torn)
        job = await ended(services, requested.id)
        cloning = await services.snapshots.request_clone_of_volume(volume.id, NewVolume("clone"), allow_torn=allow_torn)
        clone = await ended(services, cloning.id)

    assert {job.status, clone.status} == {"succeeded" if allow_torn else "failed"}
    assert (await snapshot_row(services, job.snapshot_id))["consistency"] == ("copied" if allow_torn else None)
    stored = {str(job.snapshot_id)} if allow_torn else set()
    snapshots = folder(services, volume.id) / "snapshots"
    assert ({one.name for one in snapshots.iterdir()} if snapshots.exists() else set()) == stored
    for ended_job in (job, clone):
        told = ended_job.result if allow_torn else ended_job.error
        assert (told or {})["consistency" if allow_torn else "code"] == ("copied" if allow_torn else "snapshot-torn")


async def test_retry_looks_again_whether_the_volume_is_attached(
    services: Services, disk: Settings, volume: Volume, running_worker: RunningWorker
) -> None:
    await attach(services, volume)
    async with running_worker(disk):
        failed = await ended(services, (await services.snapshots.request_take(volume.id, "taken")).id)
        await sql(services, "DELETE FROM attachments")
        retried = await ended(services, (await services.jobs.retry(failed.id)).id)

    assert (failed.status, retried.status) == ("failed", "succeeded")
    assert (await snapshot_row(services, retried.snapshot_id))["consistency"] == "application"


@pytest.mark.parametrize("allow_torn", [False, True])
async def test_bulk_snapshots_say_what_each_is_worth_and_fail_alone(
    services: Services, disk: Settings, volume: Volume, running_worker: RunningWorker, *, allow_torn: bool
) -> None:
    attached = await a_stored_volume(services, backend="disk", size=2 * MIB)
    await attach(services, attached)
    open_one = await a_stored_volume(services, backend="disk")
    request = BulkSnapshotRequest("nightly", allow_torn=allow_torn)
    with opened(services, open_one):
        async with running_worker(disk):
            await ended(services, (await services.bulk.request(request)).id)

    rows = await sql(services, "SELECT volume_id, consistency FROM snapshots")
    worth = {row.volume_id: row.consistency for row in rows}
    torn = {attached.id: "copied", open_one.id: "copied"} if allow_torn else {}
    assert worth == {volume.id: "application", **torn}
    items = await sql(services, "SELECT volume_id, code FROM job_items")
    code = "snapshotted" if allow_torn else "snapshot-torn"
    expected = {volume.id: "snapshotted", attached.id: code, open_one.id: code}
    assert {item.volume_id: item.code for item in items} == expected
    assert [one for one in await findings(services) if one[0] != "no-node"] == []
