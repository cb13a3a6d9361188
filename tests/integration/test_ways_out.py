"""However a volume job ends, its volume is left in the expected state, as a row and on disk, and is never stuck."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant
from domain.volumes.model import Growth, Volume
from domain.volumes.service import NewVolume
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, a_volume, ended, row, sql, until, volume_row

ATTEMPTS = 2
KINDS = ("create", "expand", "delete")

#: Expected state of the volume of a failed or cancelled job, and its size on disk.
LEFT = {"create": ("error", None), "expand": ("available", MIB), "delete": ("error", MIB)}


@dataclass(frozen=True)
class Place:
    """Services with a backend whose failures and pauses are controlled by files in ``folder``."""

    services: Services
    settings: Settings
    folder: Path

    def fail(self, *faults: str, after: bool = False) -> None:
        self._write("fail_after" if after else "fail", faults)

    def heal(self) -> None:
        self._write("fail", ())
        self._write("fail_after", ())

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def size_on_disk(self, volume_id: UUID | None) -> int | None:
        assert volume_id is not None
        path = self.services.backends.get("disk").path(volume_id)
        assert path is not None
        return Path(path).stat().st_size if Path(path).exists() else None

    def _write(self, name: str, faults: tuple[str, ...]) -> None:
        unfinished = self.folder / "unfinished"
        unfinished.write_text("\n".join(faults))
        unfinished.rename(self.folder / name)


@pytest.fixture
async def place(settings: Settings, tmp_path: Path) -> AsyncIterator[Place]:
    """Services with a file backend that can be made to fail."""
    options = f"fail=@{tmp_path}/fail&fail_after=@{tmp_path}/fail_after&gate={tmp_path}/gate"
    backends = {"disk": f"faulty+file:{tmp_path}/disk?{options}"}
    faulty = settings.model_copy(update={"backends": backends, "max_attempts": ATTEMPTS})
    async with open_services(faulty, adopt=True) as services:
        yield Place(services, faulty, tmp_path)


async def requested(place: Place, kind: str) -> Job:
    """Request an operation on a volume of 1 MiB, which exists unless it is to be created."""
    volumes = place.services.volumes
    if kind == "create":
        return await volumes.request_create(NewVolume("new", MIB))
    volume = await a_volume_on_disk(place)
    if kind == "expand":
        return await volumes.request_expand(volume.id, Growth(by=MIB))
    return await volumes.request_delete(volume.id)


async def a_volume_on_disk(place: Place) -> Volume:
    """Create an available volume, as a row and on disk, without any job."""
    volume = await a_volume(place.services, backend="disk")
    past = Grant(uuid4(), Fence(0, 0), deadline=math.inf)
    await place.services.backends.get("disk").create(volume.id, MIB, past)
    return volume


async def left(place: Place, job: Job) -> tuple[str, int | None]:
    """The volume's state, and its size on disk."""
    volume = await volume_row(place.services, job.volume_id)
    assert volume["job_id"] is None
    on_disk = place.size_on_disk(job.volume_id)
    if on_disk is not None:
        assert volume["size"] == on_disk
    return volume["state"], on_disk


async def require_deletable(place: Place, job: Job) -> None:
    """Require that the volume can be deleted: it is not stuck."""
    assert job.volume_id is not None
    deleted = await ended(place.services, (await place.services.volumes.request_delete(job.volume_id)).id)

    assert deleted.status == "succeeded"
    assert await sql(place.services, "SELECT id FROM volumes WHERE id = :id", id=job.volume_id) == []
    assert place.size_on_disk(job.volume_id) is None


async def require_retryable(place: Place, job: Job) -> None:
    """Require that a retry succeeds, now that the fault is gone."""
    retried = await ended(place.services, (await place.services.jobs.retry(job.id)).id)

    assert retried.status == "succeeded"
    expected = {"volume.create": MIB, "volume.expand": 2 * MIB, "volume.delete": None}
    assert place.size_on_disk(job.volume_id) == expected[job.kind]


async def wait_until_running(place: Place, job: Job) -> None:
    async def is_running() -> bool:
        return (await row(place.services, job.id)).status == "running"

    await until(is_running)


async def wait_until_retry_scheduled(place: Place, job: Job) -> None:
    async def is_waiting() -> bool:
        found = await row(place.services, job.id)
        return found.status == "queued" and found.attempt > 0

    await until(is_waiting)


@asynccontextmanager
async def failed_permanently(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    async with running_worker(place.settings):
        place.fail(f"{kind}:storage-full")
        job = await ended(place.services, (await requested(place, kind)).id)
        assert (job.status, job.error, job.attempt) == ("failed", job.error, 1)
        assert job.error is not None
        assert job.error["code"] == "storage-full"
        yield job


@asynccontextmanager
async def failed_after_all_attempts(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    async with running_worker(place.settings):
        place.fail(f"{kind}:storage-unavailable")
        job = await ended(place.services, (await requested(place, kind)).id)
        assert (job.status, job.attempt) == ("failed", ATTEMPTS)
        assert job.error is not None
        assert job.error["code"] == "storage-unavailable"
        yield job


@asynccontextmanager
async def cancelled_before_the_work(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    job = await place.services.jobs.cancel((await requested(place, kind)).id)
    assert (job.status, job.attempt) == ("cancelled", 0)
    async with running_worker(place.settings):
        yield job


@asynccontextmanager
async def cancelled_during_the_work(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    requested_job = await requested(place, kind)
    place.gate.touch()
    async with running_worker(place.settings):
        await wait_until_running(place, requested_job)
        await place.services.jobs.cancel(requested_job.id)
        job = await ended(place.services, requested_job.id)
        place.gate.unlink()
        assert job.status == "cancelled"
        yield job


@asynccontextmanager
async def cancelled_between_two_tries(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    slow_retries = place.settings.model_copy(update={"retry_seconds": 3600.0})
    requested_job = await requested(place, kind)
    place.fail(f"{kind}:storage-unavailable")
    async with running_worker(slow_retries):
        await wait_until_retry_scheduled(place, requested_job)
        await place.services.jobs.cancel(requested_job.id)
        job = await ended(place.services, requested_job.id)
        assert (job.status, job.result) == ("cancelled", None)
        yield job


WAYS = (
    failed_permanently,
    failed_after_all_attempts,
    cancelled_before_the_work,
    cancelled_during_the_work,
    cancelled_between_two_tries,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_failed_or_cancelled_job_leaves_the_expected_state(
    place: Place, running_worker: RunningWorker, kind: str, way: Any
) -> None:
    async with way(place, running_worker, kind) as job:
        assert await left(place, job) == LEFT[kind]
        place.heal()
        await require_retryable(place, job)
        if kind != "delete":
            await require_deletable(place, job)


@pytest.mark.parametrize("kind", ["create", "expand"])
async def test_volume_of_a_failed_job_can_be_deleted(place: Place, running_worker: RunningWorker, kind: str) -> None:
    async with failed_permanently(place, running_worker, kind) as job:
        await require_deletable(place, job)


async def test_failed_delete_can_be_requested_again(place: Place, running_worker: RunningWorker) -> None:
    async with failed_permanently(place, running_worker, "delete") as job:
        place.heal()
        await require_deletable(place, job)


async def test_size_of_an_expansion_that_failed_after_publishing_is_stored(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("expand:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "expand")).id)

        assert job.status == "failed"
        assert await left(place, job) == ("available", 2 * MIB)


async def test_create_that_failed_after_publishing_is_an_error_with_its_file(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("create:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "create")).id)

        assert job.status == "failed"
        assert await left(place, job) == ("error", MIB)
        place.heal()
        await require_deletable(place, job)


async def test_delete_that_failed_after_publishing_can_be_completed(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("delete:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "delete")).id)

        assert await left(place, job) == ("error", None)
        place.heal()
        await require_deletable(place, job)


@pytest.mark.parametrize("kind", KINDS)
async def test_transient_failure_costs_only_attempts(place: Place, running_worker: RunningWorker, kind: str) -> None:
    place.fail(f"{kind}:storage-unavailable*{ATTEMPTS - 1}")
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, kind)).id)

    assert (job.status, job.attempt, job.epoch) == ("succeeded", ATTEMPTS, ATTEMPTS - 1)


async def test_busy_storage_costs_no_attempt(place: Place, running_worker: RunningWorker) -> None:
    place.fail(f"expand:storage-busy*{ATTEMPTS + 1}")
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "expand")).id)

    assert (job.status, job.attempt, job.epoch) == ("succeeded", 1, ATTEMPTS + 1)


async def test_job_of_a_stopping_worker_is_continued_by_another(place: Place, running_worker: RunningWorker) -> None:
    job = await requested(place, "expand")
    place.gate.touch()
    async with running_worker(place.settings):
        await wait_until_running(place, job)
    released = await row(place.services, job.id)
    place.gate.unlink()
    async with running_worker(place.settings):
        done = await ended(place.services, job.id)

    assert (released.status, released.attempt, released.epoch) == ("queued", 0, 1)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert await left(place, job) == ("available", 2 * MIB)


async def test_concurrent_create_expand_and_delete_of_many_volumes(place: Place, running_worker: RunningWorker) -> None:
    volumes, services = place.services.volumes, place.services

    async def live(number: int) -> None:
        created = await ended(services, (await volumes.request_create(NewVolume(f"v{number}", MIB))).id)
        assert created.volume_id is not None
        await ended(services, (await volumes.request_expand(created.volume_id, Growth(by=MIB))).id)
        assert await left(place, created) == ("available", 2 * MIB)
        await ended(services, (await volumes.request_delete(created.volume_id)).id)

    async with running_worker(place.settings), running_worker(place.settings):
        await asyncio.gather(*(live(number) for number in range(8)))

    assert await sql(services, "SELECT status, max(attempt), count(*) FROM jobs GROUP BY 1") == [("succeeded", 1, 24)]
    assert await sql(services, "SELECT id FROM volumes") == []
