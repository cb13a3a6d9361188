"""However a snapshot job ends, volume and snapshot are left in the expected states, and are never stuck."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from domain.jobs.model import Job
from domain.services import open_services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, ended, volume_row
from tests.integration.snapshot_builders import (
    OPERATIONS,
    a_snapshot,
    a_stored_volume,
    done,
    path,
    read,
    requested,
    states,
    write,
)
from tests.integration.test_ways_out import ATTEMPTS, Place, wait_until_retry_scheduled, wait_until_running

OLD, NEW = b"old!" * (MIB // 4), b"new?" * (MIB // 4)

#: Expected states of the volume and the snapshot of a failed or cancelled job. The volume of a clone job is the new
#: one; a delete job has no volume, and the clone of a volume no snapshot.
LEFT = {
    "snapshot.take": ("available", "error"),
    "snapshot.restore": ("available", "ready"),
    "snapshot.delete": (None, "error"),
    "snapshot.clone": ("error", "ready"),
    "volume.clone": ("error", None),
}
SUCCEEDED = {
    "snapshot.take": ("available", "ready"),
    "snapshot.restore": ("available", "ready"),
    "snapshot.delete": (None, None),
    "snapshot.clone": ("available", "ready"),
    "volume.clone": ("available", None),
}

#: Operations whose snapshot exists, whatever becomes of the job.
KEEPS_SNAPSHOT = ("snapshot.restore", "snapshot.delete", "snapshot.clone")

Way = Callable[[Place, RunningWorker, str], Awaitable[Job]]


@pytest.fixture
async def place(settings: Settings, tmp_path: Path) -> AsyncIterator[Place]:
    """Services with a file backend that can be made to fail."""
    options = f"fail=@{tmp_path}/fail&fail_after=@{tmp_path}/fail_after&gate={tmp_path}/gate"
    backends = {"disk": f"faulty+file:{tmp_path}/disk?{options}"}
    faulty = settings.model_copy(update={"backends": backends, "max_attempts": ATTEMPTS})
    async with open_services(faulty, adopt=True) as services:
        yield Place(services, faulty, tmp_path)


async def requested_job(place: Place, kind: str) -> Job:
    """Request an operation on a volume with new data, whose snapshot (unless it is to be taken) has the old data."""
    volume = await a_stored_volume(place.services, content=OLD, backend="disk")
    snapshot = None if kind in ("snapshot.take", "volume.clone") else await a_snapshot(place.services, volume)
    write(place.services, volume.id, NEW)
    return await requested(place.services, kind, volume, snapshot)


def source(job: Job) -> UUID:
    """The volume that the snapshot was taken of, or that is cloned."""
    return UUID(job.params["of_volume"]) if "of_volume" in job.params else job.volume_id or UUID(int=0)


def failing(kind: str, code: str) -> str:
    return f"{OPERATIONS[kind]}:{code}"


async def failed_permanently(place: Place, running_worker: RunningWorker, kind: str) -> Job:
    job = await requested_job(place, kind)
    place.fail(failing(kind, "storage-full"))
    async with running_worker(place.settings):
        job = await ended(place.services, job.id)
    assert (job.status, job.attempt, (job.error or {})["code"]) == ("failed", 1, "storage-full")
    return job


async def failed_after_all_attempts(place: Place, running_worker: RunningWorker, kind: str) -> Job:
    job = await requested_job(place, kind)
    place.fail(failing(kind, "storage-unavailable"))
    async with running_worker(place.settings):
        job = await ended(place.services, job.id)
    assert (job.status, job.attempt, (job.error or {})["code"]) == ("failed", ATTEMPTS, "storage-unavailable")
    return job


async def cancelled_before_the_work(place: Place, _: RunningWorker, kind: str) -> Job:
    job = await place.services.jobs.cancel((await requested_job(place, kind)).id)
    assert (job.status, job.attempt) == ("cancelled", 0)
    return job


async def cancelled_during_the_work(place: Place, running_worker: RunningWorker, kind: str) -> Job:
    job = await requested_job(place, kind)
    place.gate.touch()
    async with running_worker(place.settings):
        await wait_until_running(place, job)
        await place.services.jobs.cancel(job.id)
        job = await ended(place.services, job.id)
    place.gate.unlink()
    assert job.status == "cancelled"
    return job


async def cancelled_between_two_tries(place: Place, running_worker: RunningWorker, kind: str) -> Job:
    job = await requested_job(place, kind)
    place.fail(failing(kind, "storage-unavailable"))
    async with running_worker(place.settings.model_copy(update={"retry_seconds": 3600.0})):
        await wait_until_retry_scheduled(place, job)
        await place.services.jobs.cancel(job.id)
        job = await ended(place.services, job.id)
    assert job.status == "cancelled"
    return job


WAYS = (
    failed_permanently,
    failed_after_all_attempts,
    cancelled_before_the_work,
    cancelled_during_the_work,
    cancelled_between_two_tries,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", OPERATIONS)
async def test_failed_or_cancelled_job_leaves_the_expected_states_and_can_be_retried(
    place: Place, running_worker: RunningWorker, kind: str, way: Way
) -> None:
    job = await way(place, running_worker, kind)
    assert await states(place.services, job) == LEFT[kind]
    volume = await volume_row(place.services, source(job))
    assert (volume["state"], volume["size"]) == ("available", MIB)
    assert read(place.services, source(job)) == NEW, "nothing was published"
    assert stored(place, source(job)) == ["data", *([str(job.snapshot_id)] if kind in KEEPS_SNAPSHOT else [])]

    place.heal()
    retry = await place.services.jobs.retry(job.id)
    async with running_worker(place.settings):
        await done(place.services, retry)
    assert await states(place.services, retry) == SUCCEEDED[kind]
    assert read(place.services, source(job)) == (OLD if kind == "snapshot.restore" else NEW)
    if kind == "snapshot.clone":
        assert read(place.services, job.volume_id) == OLD
    if kind == "volume.clone":
        assert read(place.services, job.volume_id) == NEW
        assert stored(place, source(job)) == ["data"]


@pytest.mark.parametrize("kind", OPERATIONS)
async def test_snapshot_and_volumes_of_a_failed_job_can_be_deleted(
    place: Place, running_worker: RunningWorker, kind: str
) -> None:
    job = await failed_permanently(place, running_worker, kind)
    place.heal()
    async with running_worker(place.settings):
        if job.snapshot_id is not None:
            await done(place.services, await place.services.snapshots.request_delete(job.snapshot_id))
        for volume_id in {source(job), job.volume_id} - {None}:
            await done(place.services, await place.services.volumes.request_delete(volume_id or source(job)))

    left = {found.name for found in (place.folder / "disk").iterdir()}
    assert left == {".cistern", ".fences", ".trash"}


async def test_retry_of_a_take_that_failed_after_publishing_has_current_data(
    place: Place, running_worker: RunningWorker
) -> None:
    job = await requested_job(place, "snapshot.take")
    place.fail(failing(job.kind, "storage-denied"), after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, job.id)
        assert await states(place.services, job) == ("available", "error")
        place.heal()
        write(place.services, job.volume_id, OLD)
        await done(place.services, await place.services.jobs.retry(job.id))

    stored = path(place.services, job.volume_id).parent / "snapshots" / str(job.snapshot_id)
    assert stored.read_bytes() == OLD


async def test_restore_that_failed_after_publishing_is_complete(place: Place, running_worker: RunningWorker) -> None:
    job = await requested_job(place, "snapshot.restore")
    place.fail(failing(job.kind, "storage-denied"), after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, job.id)

    assert job.status == "failed"
    assert await states(place.services, job) == ("available", "ready")
    assert read(place.services, job.volume_id) == OLD


async def test_clone_that_failed_after_publishing_is_an_error_with_its_size(
    place: Place, running_worker: RunningWorker
) -> None:
    job = await requested_job(place, "snapshot.clone")
    place.fail(failing(job.kind, "storage-denied"), after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, job.id)
        assert await states(place.services, job) == ("error", "ready")
        assert (await volume_row(place.services, job.volume_id))["size"] == place.size_on_disk(job.volume_id)
        place.heal()
        assert job.volume_id is not None
        await done(place.services, await place.services.volumes.request_delete(job.volume_id))


async def test_rows_are_released_even_if_sealing_fails(place: Place, running_worker: RunningWorker) -> None:
    jobs = [await requested_job(place, kind) for kind in OPERATIONS]
    place.fail("*:storage-denied")
    async with running_worker(place.settings):
        jobs = [await ended(place.services, job.id) for job in jobs]

    assert {job.status for job in jobs} == {"failed"}
    assert [await states(place.services, job) for job in jobs] == [LEFT[job.kind] for job in jobs]


@pytest.mark.parametrize("kind", OPERATIONS)
async def test_transient_failure_costs_only_attempts(place: Place, running_worker: RunningWorker, kind: str) -> None:
    job = await requested_job(place, kind)
    place.fail(f"{failing(kind, 'storage-unavailable')}*{ATTEMPTS - 1}")
    async with running_worker(place.settings):
        job = await done(place.services, job)

    assert (job.attempt, job.epoch) == (ATTEMPTS, ATTEMPTS - 1)
    assert await states(place.services, job) == SUCCEEDED[kind]


def stored(place: Place, volume_id: UUID) -> list[str]:
    """The names of the files of a volume and its snapshots, drafts that have not been swept among them."""
    files = (place.folder / "disk" / str(volume_id)).rglob("*")
    return sorted((file.name for file in files if file.is_file()), key=lambda name: (name != "data", name))
