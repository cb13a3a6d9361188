"""Jobs of a node whose agent never comes back, and what becomes of the volumes that they hold."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.errors import VolumeAttached, VolumeBusy
from domain.jobs.attempt import ClaimedJob
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Grant
from domain.volumes.attachments.model import Attachment, Mode
from domain.volumes.attachments.repository import AttachmentFilter
from domain.volumes.attachments.service import NewAttachment
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import ended, row, set_job, sql, volume_row
from tests.integration.snapshot_builders import a_stored_volume, done

NODE = "web-1"


@pytest.fixture
def disk_settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"backends": {"disk": f"file:{tmp_path}/volumes"}})


@pytest.fixture
async def services(disk_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(disk_settings, adopt=True) as services:
        await sql(services, f"INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, '{NODE}')")
        yield services


async def an_attach_job(services: Services) -> Job:
    volume = await a_stored_volume(services, backend="disk")
    return await services.attachments.request_attach(volume.id, NewAttachment(NODE, "one"))


async def attachments(services: Services) -> list[Attachment]:
    request = PageRequest(scope="test", limit=10, cursor=None)
    page, _ = await services.attachments.list_attachments(AttachmentFilter(), request, project_id=DEFAULT_PROJECT)
    return list(page.items)


async def test_a_volume_is_taken_by_force_from_a_node_that_died_in_its_job(
    services: Services, disk_settings: Settings, running_worker: RunningWorker
) -> None:
    job = await an_attach_job(services)
    assert job.volume_id is not None
    await set_job(services, job.id, "attempt = 1, epoch = 1, started_at = now()")  # rescued, after its agent died
    cancelled = await services.jobs.cancel(job.id)
    assert cancelled.status is JobStatus.QUEUED  # only the agent knows what it has mounted

    [attachment] = await attachments(services)
    async with running_worker(disk_settings):
        await done(services, await services.attachments.request_detach(job.volume_id, attachment.id, force=True))

    assert (await row(services, job.id)).status is JobStatus.CANCELLED
    assert await attachments(services) == []
    assert (await volume_row(services, job.volume_id))["state"] == "available"
    audited = await sql(services, "SELECT action FROM audit_entries ORDER BY id")
    assert [one.action for one in audited] == ["volume.attach", "job.cancel", "job.cancel", "volume.isolate"]


RUNNING = "status = 'running', attempt = 1, started_at = now(), lease_expires_at = now() + '1 hour'"


@pytest.mark.parametrize("change", [RUNNING, "kind = 'volume.expand'"])
async def test_a_job_that_is_at_work_is_not_given_up_by_force(services: Services, change: str) -> None:
    job = await an_attach_job(services)
    assert job.volume_id is not None
    await set_job(services, job.id, change)
    [attachment] = await attachments(services)
    with pytest.raises(VolumeBusy):
        await services.attachments.request_detach(job.volume_id, attachment.id, force=True)
    with pytest.raises(VolumeBusy):
        await services.attachments.request_detach(job.volume_id, attachment.id)


@pytest.mark.parametrize("is_published", [False, True])
async def test_a_volume_that_was_isolated_has_no_holders_although_the_job_was_cancelled(
    services: Services, disk_settings: Settings, running_worker: RunningWorker, *, is_published: bool
) -> None:
    """The worker died after the publication: what the node writes is lost, and it must not go on."""
    volume_id = (await an_attach_job(services)).volume_id
    assert volume_id is not None
    await sql(services, "UPDATE attachments SET state = 'attached'")
    [attachment] = await attachments(services)
    job = await services.attachments.request_detach(volume_id, attachment.id, force=True)
    if is_published:
        fence = ClaimedJob.from_row(job).fence
        await services.backends.get("disk").isolate(volume_id, Grant(job.id, fence, math.inf))
    await set_job(services, job.id, "attempt = 1, epoch = 1, started_at = now()")
    await services.jobs.cancel(job.id)

    async with running_worker(disk_settings):
        await ended(services, job.id)
    assert (await row(services, job.id)).status is JobStatus.CANCELLED
    assert len(await attachments(services)) == (0 if is_published else 1)
    assert (await volume_row(services, volume_id))["state"] == "available"


async def test_two_holders_never_share_a_path(services: Services) -> None:
    """The second one's mode would be that of the first, and its end, too."""
    volume = await a_stored_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET filesystem = 'xfs'")
    job = await services.attachments.request_attach(volume.id, NewAttachment(NODE, "one", path="/srv/data"))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    with pytest.raises(VolumeAttached) as refused:
        await services.attachments.request_attach(volume.id, NewAttachment(NODE, "two", Mode.READ_ONLY, "/srv/data"))
    assert refused.value.details["holder"] == "one"
    assert [one.holder for one in await attachments(services)] == ["one"]
    assert job.params["path"] == "/srv/data"
