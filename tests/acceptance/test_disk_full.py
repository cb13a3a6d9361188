"""A disk fills up during the work: jobs fail with storage-full, leave nothing behind, and succeed on a retry."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks.disk_image import NoImage, disk_image
from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.db.base import DEFAULT_PROJECT
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
    """Services and a worker process on that disk, whose volumes are fully allocated."""
    url = f"faulty+file:{disk}/volumes?allocate=full&journal={cluster.journal}"
    settings = cluster.settings.model_copy(update={"backends": {"local": url}})
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        cluster.start_worker(url=url)
        yield services
        cluster.clear()  # a disk with open files cannot be unmounted


def fill(disk: Path, leaving: int = 0) -> None:
    """Fill the disk, leaving this many bytes free."""
    with (disk / "filler").open("wb") as filler:
        length = free(disk) - leaving
        while length > 0 and free(disk) > leaving:
            try:
                os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, length)
            except OSError:  # the file system needs some blocks for its own metadata
                length //= 2


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


async def create(services: Services, count: int) -> list[UUID]:
    jobs = [await services.volumes.request_create(NewVolume(f"v{number}", MIB)) for number in range(count)]
    return [(await ended(services, job)).volume_id or UUID(int=0) for job in jobs]


async def volume_on_disk(services: Services, volume_id: UUID) -> tuple[str, int, int]:
    """Return a volume's state, its size, and the size of its file."""
    volume = await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)
    return volume.state, volume.size, Path(str(services.volumes.path(volume))).stat().st_size


async def items_of(services: Services, job: Job) -> dict[UUID, tuple[str, str | None]]:
    items = await services.bulk.items(job.id, None, after=None, limit=100, project_id=DEFAULT_PROJECT)
    return {item.volume_id: (item.status.value, item.code) for item in items}


def files(disk: Path) -> set[str]:
    """Return the names of all files of volumes and snapshots, leftovers included."""
    return {path.name for path in (disk / "volumes").glob("[!.]*/**/*") if path.is_file()}


def code_of(job: Job) -> tuple[str, str | None]:
    return job.status.value, (job.error or {}).get("code")


async def test_bulk_expands_what_fits_and_leaves_the_other_volumes_unchanged(services: Services, disk: Path) -> None:
    volumes = await create(services, VOLUMES)
    fill(disk, leaving=30 * MIB)
    # one at a time: what an attempt has allocated before it fails is missing to those beside it
    request = BulkExpandRequest(GrowthPolicy(to=LARGE), max_concurrent=1)
    job = await ended(services, await services.bulk.request(request))

    assert (job.status, job.total) == ("partial", VOLUMES)
    assert (job.succeeded or 0) >= 3
    assert (job.failed or 0) >= 4
    ledger = await items_of(services, job)
    assert set(ledger.values()) == {("succeeded", "expanded"), ("failed", "storage-full")}
    for volume_id in volumes:
        size = LARGE if ledger[volume_id][0] == "succeeded" else MIB
        assert await volume_on_disk(services, volume_id) == ("available", size, size)
    assert files(disk) == {"data"}

    make_room(disk)
    retried = await ended(services, await services.jobs.retry(job.id))

    assert (retried.status, retried.succeeded) == ("succeeded", job.failed)
    assert {await volume_on_disk(services, volume_id) for volume_id in volumes} == {("available", LARGE, LARGE)}


async def test_snapshot_on_a_full_disk_leaves_no_file_and_succeeds_on_retry(services: Services, disk: Path) -> None:
    (volume_id,) = await create(services, 1)
    data = Path(str(services.volumes.path(await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT))))
    data.write_bytes(os.urandom(MIB))
    fill(disk, leaving=MIB // 2)
    job = await ended(services, await services.snapshots.request_take(volume_id, "before"))

    assert code_of(job) == ("failed", "storage-full")
    assert await volume_on_disk(services, volume_id) == ("available", MIB, MIB)
    assert job.snapshot_id is not None
    assert (await services.snapshots.get(job.snapshot_id, project_id=DEFAULT_PROJECT)).state == "error"
    assert files(disk) == {"data"}

    make_room(disk)
    retried = await ended(services, await services.jobs.retry(job.id))

    assert code_of(retried) == ("succeeded", None)
    assert (data.parent / "snapshots" / str(retried.snapshot_id)).read_bytes() == data.read_bytes()


async def test_full_disk_refuses_creation_and_allows_every_deletion(services: Services, disk: Path) -> None:
    volume_id, deleted_id, kept_id = await create(services, 3)
    snapshot = await ended(services, await services.snapshots.request_take(kept_id, "small"))
    fill(disk)
    assert free(disk) == 0
    failed = await ended(services, await services.volumes.request_create(NewVolume("late", MIB)))

    assert code_of(failed) == ("failed", "storage-full")
    assert {path.name for path in (disk / "volumes").glob("[!.]*")} == {str(volume_id), str(deleted_id), str(kept_id)}
    assert snapshot.snapshot_id is not None
    for deletion in (
        await services.snapshots.request_delete(snapshot.snapshot_id),
        await services.volumes.request_delete(volume_id),
        await services.volumes.request_delete(deleted_id),
    ):
        assert code_of(await ended(services, deletion)) == ("succeeded", None)
    assert not (disk / "volumes" / str(volume_id)).exists()

    retried = await ended(services, await services.jobs.retry(failed.id))
    assert code_of(retried) == ("succeeded", None), "the deletions freed too little"
