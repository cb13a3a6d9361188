"""A disk runs full in the middle of the work: it is said, nothing is left half done, and with room it succeeds."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks.disk_image import NoImage, disk_image
from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.service import NewVolume
from tests.acceptance.cluster import Cluster
from tests.support.bulk import MIB, ended

VOLUMES, LARGE = 8, 8 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MiB."""
    try:
        with disk_image(tmp_path, 128 * MIB, "ext4") as mounted:
            yield mounted
    except NoImage as reason:
        pytest.skip(str(reason))


@pytest.fixture
async def services(disk: Path, cluster: Cluster) -> AsyncIterator[Services]:
    """Services and a worker process on that disk, where volumes take all their room at once."""
    url = f"faulty+file:{disk}/volumes?allocate=full&journal={cluster.journal}"
    settings = cluster.settings.model_copy(update={"backends": {"local": url}})
    async with open_services(settings) as services, services.watcher.watching():
        cluster.start_worker(url=url)
        yield services
        cluster.clear()  # the disk can be unmounted when nobody has files open on it


def fill(disk: Path, leaving: int = 0) -> None:
    """Take all room but so many bytes."""
    with (disk / "filler").open("wb") as filler:
        length = free(disk) - leaving
        while length > 0 and free(disk) > leaving:
            try:
                os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, length)
            except OSError:  # the file system needs some of it to keep account of the rest
                length //= 2


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


async def create(services: Services, count: int) -> list[UUID]:
    jobs = [await services.volumes.request_create(NewVolume(f"v{number}", MIB)) for number in range(count)]
    return [(await ended(services, job)).volume_id or UUID(int=0) for job in jobs]


async def volume_is(services: Services, volume_id: UUID) -> tuple[str, int, int]:
    """A volume's state, its size, and the size of its file."""
    volume = await services.volumes.get(volume_id)
    return volume.state, volume.size, Path(str(services.volumes.path(volume))).stat().st_size


async def items_of(services: Services, job: Job) -> dict[UUID, tuple[str, str | None]]:
    items = await services.bulk.items(job.id, None, after=None, limit=100)
    return {item.volume_id: (item.status.value, item.code) for item in items}


def files(disk: Path) -> set[str]:
    """All files of volumes and snapshots, with what is left of them."""
    return {path.name for path in (disk / "volumes").glob("[!.]*/**/*") if path.is_file()}


def code_of(job: Job) -> tuple[str, str | None]:
    return job.status.value, (job.error or {}).get("code")


async def test_a_bulk_on_a_disk_that_runs_full_grows_what_fits_and_leaves_the_rest_as_it_was(
    services: Services, disk: Path
) -> None:
    volumes = await create(services, VOLUMES)
    fill(disk, leaving=30 * MIB)
    wanted = BulkExpandRequest(GrowthPolicy(to=LARGE), max_concurrent=3)
    job = await ended(services, await services.expansion.request_expand(wanted))

    assert (job.status, job.total) == ("partial", VOLUMES)
    assert (job.succeeded or 0) >= 3
    assert (job.failed or 0) >= 4
    ledger = await items_of(services, job)
    assert set(ledger.values()) == {("succeeded", "expanded"), ("failed", "storage-full")}
    for volume_id in volumes:
        size = LARGE if ledger[volume_id][0] == "succeeded" else MIB
        assert await volume_is(services, volume_id) == ("available", size, size)
    assert files(disk) == {"data"}

    make_room(disk)
    retried = await ended(services, await services.jobs.retry(job.id))

    assert (retried.status, retried.succeeded) == ("succeeded", job.failed)
    assert {await volume_is(services, volume_id) for volume_id in volumes} == {("available", LARGE, LARGE)}


async def test_a_snapshot_that_finds_no_room_leaves_nothing_and_succeeds_with_room(
    services: Services, disk: Path
) -> None:
    (volume_id,) = await create(services, 1)
    data = Path(str(services.volumes.path(await services.volumes.get(volume_id))))
    data.write_bytes(os.urandom(MIB))
    fill(disk, leaving=MIB // 2)
    job = await ended(services, await services.snapshots.request_take(volume_id, "before"))

    assert code_of(job) == ("failed", "storage-full")
    assert await volume_is(services, volume_id) == ("available", MIB, MIB)
    assert job.snapshot_id is not None
    assert (await services.snapshots.get(job.snapshot_id)).state == "error"
    assert files(disk) == {"data"}

    make_room(disk)
    retried = await ended(services, await services.jobs.retry(job.id))

    assert code_of(retried) == ("succeeded", None)
    assert (data.parent / "snapshots" / str(retried.snapshot_id)).read_bytes() == data.read_bytes()


async def test_on_a_full_disk_nothing_can_be_created_and_everything_deleted(services: Services, disk: Path) -> None:
    volume_id, another, other = await create(services, 3)
    snapshot = await ended(services, await services.snapshots.request_take(other, "small"))
    fill(disk)
    assert free(disk) == 0
    failed = await ended(services, await services.volumes.request_create(NewVolume("late", MIB)))

    assert code_of(failed) == ("failed", "storage-full")
    assert {path.name for path in (disk / "volumes").glob("[!.]*")} == {str(volume_id), str(another), str(other)}
    assert snapshot.snapshot_id is not None
    for deletion in (
        await services.snapshots.request_delete(snapshot.snapshot_id),
        await services.volumes.request_delete(volume_id),
        await services.volumes.request_delete(another),
    ):
        assert code_of(await ended(services, deletion)) == ("succeeded", None)
    assert not (disk / "volumes" / str(volume_id)).exists()

    retried = await ended(services, await services.jobs.retry(failed.id))
    assert code_of(retried) == ("succeeded", None), "the room of what was deleted is enough"
