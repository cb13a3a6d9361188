"""Clones of volumes: one job, which leaves the clone and no snapshot, whatever happens in between."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.errors import Invalid, QuotaExceeded, VolumeBusy, VolumeNotFound, VolumeUnusable
from domain.jobs.attempt import Failed
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused
from domain.storage.intermediate import intermediate_of
from domain.volumes.model import Growth, Volume
from domain.volumes.service import NewVolume
from tests.integration.check_builders import findings, folder, grant_at, on_disk, repair_all, run_check
from tests.integration.job_builders import MIB, row, set_job, sql, volume_row
from tests.integration.project_builders import a_project
from tests.integration.snapshot_builders import (
    a_snapshot,
    a_stored_volume,
    all_rows,
    attempted,
    carried_out,
    claimed,
    given_up,
    read,
    settled,
    write,
)

OLD, NEW = b"old!" * (MIB // 4), b"new?" * (MIB // 4)


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path), adopt=True) as services:
        yield services


@pytest.fixture
async def volume(services: Services) -> Volume:
    return await a_stored_volume(services, backend="disk", content=OLD)


async def clone_of(services: Services, volume_id: UUID, name: str = "clone", size: int | None = None) -> Job:
    return await services.snapshots.request_clone_of_volume(volume_id, NewVolume(name, size))


def clone_id(job: Job) -> UUID:
    assert job.volume_id is not None
    return job.volume_id


def files(services: Services, volume_id: UUID) -> list[str]:
    return sorted(path.name for path in folder(services, volume_id).rglob("*") if path.is_file())


def intermediate(services: Services, volume: Volume, job: Job) -> Path:
    return folder(services, volume.id) / "snapshots" / str(intermediate_of(clone_id(job)))


async def test_clone_has_the_bytes_and_the_size_of_its_source_and_leaves_no_snapshot(
    services: Services, volume: Volume
) -> None:
    job = await carried_out(services, await clone_of(services, volume.id))
    clone, source = await volume_row(services, clone_id(job)), await volume_row(services, volume.id)

    assert (job.status, job.kind) == ("succeeded", "volume.clone")
    assert job.result == {"volume_id": str(clone_id(job)), "size": MIB, "consistency": "application"}
    assert (clone["state"], clone["size"], clone["backend"], clone["version"]) == ("available", MIB, "disk", 2)
    assert (clone["source_volume_id"], clone["source_snapshot_id"]) == (volume.id, None)
    assert (source["state"], source["job_id"], source["version"]) == ("available", None, 3)
    assert read(services, clone_id(job)) == OLD
    assert (files(services, volume.id), files(services, clone_id(job))) == (["data"], ["data"])
    assert await sql(services, "SELECT id FROM snapshots") == []
    assert await findings(services) == []


async def test_larger_clone_ends_with_zeros(services: Services, volume: Volume) -> None:
    job = await carried_out(services, await clone_of(services, volume.id, size=2 * MIB))

    assert read(services, clone_id(job)) == OLD + bytes(MIB)
    assert (await volume_row(services, clone_id(job)))["size"] == 2 * MIB


async def test_clone_of_a_volume_has_its_file_system_and_how_far_that_has_grown(
    services: Services, volume: Volume
) -> None:
    await sql(services, "UPDATE volumes SET filesystem = 'xfs', filesystem_grown_to = 500000")
    clone = await volume_row(services, clone_id(await clone_of(services, volume.id)))

    assert (clone["filesystem"], clone["filesystem_grown_to"]) == ("xfs", 500000)


async def test_file_system_from_a_snapshot_is_grown_again_because_it_may_have_grown_since(
    services: Services, volume: Volume
) -> None:
    snapshot = await a_snapshot(services, volume)
    await sql(services, "UPDATE volumes SET filesystem = 'ext4', filesystem_grown_to = size")
    cloned = await carried_out(services, await services.snapshots.request_clone(snapshot.id, NewVolume("clone")))
    await carried_out(services, await services.snapshots.request_restore(snapshot.id))
    clone, restored = await volume_row(services, clone_id(cloned)), await volume_row(services, volume.id)

    assert (clone["filesystem"], clone["filesystem_grown_to"]) == ("ext4", 0)
    assert (restored["filesystem"], restored["filesystem_grown_to"]) == ("ext4", 0)
    assert (clone["source_snapshot_id"], clone["source_volume_id"]) == (snapshot.id, None)


REFUSED: dict[str, tuple[NewVolume, str]] = {
    "smaller": (NewVolume("clone", 4096), "size"),
    "another-backend": (NewVolume("clone", backend="other"), "backend"),
    "another-file-system": (NewVolume("clone", columns={"filesystem": "ext4"}), "filesystem"),
}


@pytest.mark.parametrize(("new", "field"), REFUSED.values(), ids=REFUSED)
async def test_clone_that_cannot_be_like_its_source_is_refused_and_changes_nothing(
    services: Services, volume: Volume, new: NewVolume, field: str
) -> None:
    before = await all_rows(services)
    with pytest.raises(Invalid) as refused:
        await services.snapshots.request_clone_of_volume(volume.id, new)

    assert refused.value.details == {"field": field}
    assert await all_rows(services) == before


async def test_busy_unusable_missing_or_foreign_source_is_refused(services: Services, volume: Volume) -> None:
    other = await a_project(services, "other")
    with pytest.raises(VolumeNotFound):
        await services.snapshots.request_clone_of_volume(volume.id, NewVolume("clone"), origin=other.origin)
    with pytest.raises(VolumeNotFound):
        await clone_of(services, uuid4())
    job = await services.volumes.request_expand(volume.id, Growth(by=MIB))
    with pytest.raises(VolumeBusy) as refused:
        await clone_of(services, volume.id)
    assert refused.value.details["job_id"] == job.id
    await sql(services, "UPDATE volumes SET state = 'error', job_id = NULL")
    with pytest.raises(VolumeUnusable):
        await clone_of(services, volume.id)


async def test_source_is_held_like_the_volume_of_a_snapshot_until_the_clone_is_made(
    services: Services, volume: Volume
) -> None:
    snapshot = await a_snapshot(services, volume)
    job = await clone_of(services, volume.id)
    requests: list[Callable[[], Awaitable[Job]]] = [
        lambda: services.volumes.request_expand(volume.id, Growth(by=MIB)),
        lambda: services.volumes.request_delete(volume.id),
        lambda: services.snapshots.request_restore(snapshot.id),
        lambda: services.snapshots.request_take(volume.id, "another"),
        lambda: clone_of(services, volume.id, "second"),
    ]
    for request in requests:
        with pytest.raises(VolumeBusy) as refused:
            await request()
        assert refused.value.details == {"job_id": job.id, "state": "snapshotting"}

    await carried_out(services, job)
    assert (await carried_out(services, await requests[0]())).status == "succeeded"


async def test_clone_and_its_source_stay_when_the_other_is_deleted(services: Services, volume: Volume) -> None:
    first = await carried_out(services, await clone_of(services, volume.id, "first"))
    await carried_out(services, await services.volumes.request_delete(volume.id))
    second = await carried_out(services, await clone_of(services, clone_id(first), "second"))
    await carried_out(services, await services.volumes.request_delete(clone_id(first)))

    assert read(services, clone_id(second)) == OLD
    assert (await volume_row(services, clone_id(second)))["source_volume_id"] == clone_id(first)


async def test_clone_counts_one_volume_and_its_bytes_and_no_snapshot(services: Services) -> None:
    project = await a_project(services, "limited", max_volumes=2, max_bytes=2 * MIB, max_snapshots=0)
    created = await services.volumes.request_create(NewVolume("one", MIB), origin=project.origin)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    snapshots = services.snapshots
    with pytest.raises(QuotaExceeded):
        await snapshots.request_clone_of_volume(clone_id(created), NewVolume("two", 2 * MIB), origin=project.origin)
    await snapshots.request_clone_of_volume(clone_id(created), NewVolume("two"), origin=project.origin)


async def test_retry_of_a_failed_clone_has_the_bytes_and_at_least_the_size_of_the_source_as_it_is_now(
    services: Services, volume: Volume
) -> None:
    job = await clone_of(services, volume.id)
    engine, own = await claimed(services, job)
    await attempted(services, own)  # the clone is made, and the job fails all the same
    await settled(engine, own, Failed({"code": "storage-denied", "detail": ""}, {"size": MIB}))
    await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
    write(services, volume.id, NEW)
    retried = await carried_out(services, await services.jobs.retry(job.id))

    assert (retried.status, retried.volume_id) == ("succeeded", job.volume_id)
    assert read(services, clone_id(job)) == NEW + bytes(MIB)
    assert (await volume_row(services, clone_id(job)))["size"] == 2 * MIB
    assert files(services, volume.id) == ["data"]


async def test_retry_of_a_clone_whose_source_is_gone_is_refused(services: Services, volume: Volume) -> None:
    job = await given_up(services, await clone_of(services, volume.id))
    await carried_out(services, await services.volumes.request_delete(volume.id))

    with pytest.raises(VolumeNotFound):
        await services.jobs.retry(job.id)
    assert (await carried_out(services, await services.volumes.request_delete(clone_id(job)))).status == "succeeded"


async def test_repetition_after_the_clone_was_made_takes_no_other_snapshot(services: Services, volume: Volume) -> None:
    job = await clone_of(services, volume.id)
    _, own = await claimed(services, job)
    await attempted(services, own)
    write(services, volume.id, NEW)
    await set_job(services, job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    job = await carried_out(services, await row(services, job.id))

    assert job.status == "succeeded"
    assert read(services, clone_id(job)) == OLD
    assert files(services, volume.id) == ["data"]


async def test_stale_attempt_cannot_bring_the_intermediate_snapshot_back(services: Services, volume: Volume) -> None:
    job = await clone_of(services, volume.id)
    _, stale = await claimed(services, job)
    await set_job(services, job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    job = await carried_out(services, await row(services, job.id))

    with pytest.raises(FenceRefused):
        await disk(services).take_snapshot(volume.id, intermediate_of(clone_id(job)), grant_at(*stale.fence))
    assert files(services, volume.id) == ["data"]


def disk(services: Services) -> StorageDriver:
    return services.backends.get("disk")


# --- cistern check ---------------------------------------------------------------------------------------------------


async def left_behind(services: Services, volume: Volume) -> Job:
    """Fail a clone job as if its worker had died between taking and cloning, and sealing had failed."""
    job = await clone_of(services, volume.id)
    engine, own = await claimed(services, job)
    await disk(services).take_snapshot(volume.id, intermediate_of(clone_id(job)), grant_at(*own.fence))
    await settled(engine, own, Failed({"code": "storage-denied", "detail": ""}))
    return await row(services, job.id)


async def test_check_removes_the_intermediate_snapshot_of_a_dead_clone_and_never_adopts_it(
    services: Services, volume: Volume
) -> None:
    job = await left_behind(services, volume)
    assert await findings(services) == [("leftover", f"snapshot {intermediate_of(clone_id(job))}", True)]

    assert await repair_all(services) == ["leftover"]
    assert files(services, volume.id) == ["data"]
    assert await sql(services, "SELECT id FROM snapshots") == []


async def test_clone_can_be_retried_after_its_leftover_was_removed(services: Services, volume: Volume) -> None:
    job = await left_behind(services, volume)
    await repair_all(services)
    retried = await carried_out(services, await services.jobs.retry(job.id))

    assert (retried.status, read(services, clone_id(retried))) == ("succeeded", OLD)


async def test_check_beside_a_clone_that_is_being_made_leaves_its_snapshot_alone(
    services: Services, volume: Volume
) -> None:
    job = await clone_of(services, volume.id)
    _, own = await claimed(services, job)
    await disk(services).take_snapshot(volume.id, intermediate_of(clone_id(job)), grant_at(*own.fence))

    assert [str(finding) for finding in await run_check(services, repair=True)] == []
    assert intermediate(services, volume, job).exists()


async def test_adopted_volume_keeps_no_intermediate_snapshot(services: Services, volume: Volume) -> None:
    await left_behind(services, volume)
    await sql(services, "DELETE FROM volumes WHERE id = :id", id=volume.id)

    assert [one.code.value for one in await run_check(services, repair=True)] == ["no-row"]
    assert await repair_all(services) == ["leftover"]
    assert (await volume_row(services, volume.id))["state"] == "available"
    assert await sql(services, "SELECT id FROM snapshots") == []


async def test_clone_that_lost_its_source_is_failed_and_the_clone_released(services: Services, volume: Volume) -> None:
    job = await clone_of(services, volume.id)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL WHERE id = :id", id=volume.id)

    assert await findings(services) == [("not-held", f"job {job.id}", True)]
    assert await repair_all(services) == ["not-held"]
    assert (await row(services, job.id)).status == "failed"
    assert (await volume_row(services, clone_id(job)))["state"] == "error"


async def test_source_of_an_ended_clone_is_released(services: Services, volume: Volume) -> None:
    job = await clone_of(services, volume.id)
    await set_job(services, job.id, "status = 'failed', finished_at = now()")

    assert set(await repair_all(services)) == {"no-job"}
    assert (await volume_row(services, volume.id))["state"] == "available"
    assert (await volume_row(services, clone_id(job)))["state"] == "error"
