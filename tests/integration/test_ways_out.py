"""However a job ends, its volume is left as the design's table says, in the row and on the disk, and never stuck."""

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
from domain.volumes.growth import Growth
from domain.volumes.model import Volume
from domain.volumes.service import NewVolume
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, a_volume, ended, row, sql, until, volume_row

ATTEMPTS = 2
KINDS = ("create", "expand", "delete")

#: What the design's table says of a job that came to nothing: the volume's state, and the size on the disk.
LEFT = {"create": ("error", None), "expand": ("available", MIB), "delete": ("error", MIB)}


@dataclass(frozen=True)
class Place:
    """A storage that fails and waits as the files in ``folder`` say, and the services over it."""

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
    """Services over a disk that can be made to fail."""
    options = f"fail=@{tmp_path}/fail&fail_after=@{tmp_path}/fail_after&gate={tmp_path}/gate"
    backends = {"disk": f"faulty+file:{tmp_path}/disk?{options}"}
    faulty = settings.model_copy(update={"backends": backends, "max_attempts": ATTEMPTS})
    async with open_services(faulty) as services:
        yield Place(services, faulty, tmp_path)


async def requested(place: Place, kind: str) -> Job:
    """Ask for an operation on a volume of 1 MiB, which is there unless it is to be created."""
    volumes = place.services.volumes
    if kind == "create":
        return await volumes.request_create(NewVolume("new", MIB))
    volume = await a_volume_on_disk(place)
    if kind == "expand":
        return await volumes.request_expand(volume.id, Growth(by=MIB))
    return await volumes.request_delete(volume.id)


async def a_volume_on_disk(place: Place) -> Volume:
    """Have an available volume, in the row and on the disk, without any job."""
    volume = await a_volume(place.services, backend="disk")
    past = Grant(uuid4(), Fence(0, 0), deadline=math.inf)
    await place.services.backends.get("disk").create(volume.id, MIB, past)
    return volume


async def left(place: Place, job: Job) -> tuple[str, int | None]:
    """How the volume was left: its state, and the size on the disk."""
    volume = await volume_row(place.services, job.volume_id)
    assert volume["job_id"] is None
    on_disk = place.size_on_disk(job.volume_id)
    if on_disk is not None:
        assert volume["size"] == on_disk
    return volume["state"], on_disk


async def can_be_deleted(place: Place, job: Job) -> None:
    """No volume is ever stuck."""
    assert job.volume_id is not None
    deleted = await ended(place.services, (await place.services.volumes.request_delete(job.volume_id)).id)

    assert deleted.status == "succeeded"
    assert await sql(place.services, "SELECT id FROM volumes WHERE id = :id", id=job.volume_id) == []
    assert place.size_on_disk(job.volume_id) is None


async def can_be_retried(place: Place, job: Job) -> None:
    """After the fault is gone, the same thing succeeds."""
    retried = await ended(place.services, (await place.services.jobs.retry(job.id)).id)

    assert retried.status == "succeeded"
    expected = {"volume.create": MIB, "volume.expand": 2 * MIB, "volume.delete": None}
    assert place.size_on_disk(job.volume_id) == expected[job.kind]


async def at_work(place: Place, job: Job) -> None:
    async def is_running() -> bool:
        return (await row(place.services, job.id)).status == "running"

    await until(is_running)


async def waits_for_a_retry(place: Place, job: Job) -> None:
    async def is_waiting() -> bool:
        found = await row(place.services, job.id)
        return found.status == "queued" and found.attempt > 0

    await until(is_waiting)


@asynccontextmanager
async def given_up_for_good(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    async with running_worker(place.settings):
        place.fail(f"{kind}:storage-full")
        job = await ended(place.services, (await requested(place, kind)).id)
        assert (job.status, job.error, job.attempt) == ("failed", job.error, 1)
        assert job.error is not None
        assert job.error["code"] == "storage-full"
        yield job


@asynccontextmanager
async def given_up_after_all_attempts(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
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
        await at_work(place, requested_job)
        await place.services.jobs.cancel(requested_job.id)
        job = await ended(place.services, requested_job.id)
        place.gate.unlink()
        assert job.status == "cancelled"
        yield job


@asynccontextmanager
async def cancelled_between_two_tries(place: Place, running_worker: RunningWorker, kind: str) -> AsyncIterator[Job]:
    patient = place.settings.model_copy(update={"retry_seconds": 3600.0})
    requested_job = await requested(place, kind)
    place.fail(f"{kind}:storage-unavailable")
    async with running_worker(patient):
        await waits_for_a_retry(place, requested_job)
        await place.services.jobs.cancel(requested_job.id)
        job = await ended(place.services, requested_job.id)
        assert (job.status, job.result) == ("cancelled", None)
        yield job


WAYS = (
    given_up_for_good,
    given_up_after_all_attempts,
    cancelled_before_the_work,
    cancelled_during_the_work,
    cancelled_between_two_tries,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_that_comes_to_nothing_leaves_its_volume_as_the_design_says(
    place: Place, running_worker: RunningWorker, kind: str, way: Any
) -> None:
    async with way(place, running_worker, kind) as job:
        assert await left(place, job) == LEFT[kind]
        place.heal()
        await can_be_retried(place, job)
        if kind != "delete":
            await can_be_deleted(place, job)


@pytest.mark.parametrize("kind", ["create", "expand"])
async def test_what_came_to_nothing_can_be_deleted_instead(
    place: Place, running_worker: RunningWorker, kind: str
) -> None:
    async with given_up_for_good(place, running_worker, kind) as job:
        await can_be_deleted(place, job)


async def test_a_delete_that_failed_can_be_asked_for_again(place: Place, running_worker: RunningWorker) -> None:
    async with given_up_for_good(place, running_worker, "delete") as job:
        place.heal()
        await can_be_deleted(place, job)


async def test_an_expansion_that_failed_after_it_was_published_is_adopted(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("expand:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "expand")).id)

        assert job.status == "failed"
        assert await left(place, job) == ("available", 2 * MIB)


async def test_a_create_that_failed_after_it_was_published_is_an_error_with_its_file(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("create:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "create")).id)

        assert job.status == "failed"
        assert await left(place, job) == ("error", MIB)
        place.heal()
        await can_be_deleted(place, job)


async def test_a_delete_that_failed_after_it_was_published_can_be_ended(
    place: Place, running_worker: RunningWorker
) -> None:
    place.fail("delete:storage-denied", after=True)
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "delete")).id)

        assert await left(place, job) == ("error", None)
        place.heal()
        await can_be_deleted(place, job)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failure_that_passes_costs_attempts_and_nothing_else(
    place: Place, running_worker: RunningWorker, kind: str
) -> None:
    place.fail(f"{kind}:storage-unavailable*{ATTEMPTS - 1}")
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, kind)).id)

    assert (job.status, job.attempt, job.epoch) == ("succeeded", ATTEMPTS, ATTEMPTS - 1)


async def test_a_lock_in_the_way_costs_no_attempt(place: Place, running_worker: RunningWorker) -> None:
    place.fail(f"expand:storage-busy*{ATTEMPTS + 1}")
    async with running_worker(place.settings):
        job = await ended(place.services, (await requested(place, "expand")).id)

    assert (job.status, job.attempt, job.epoch) == ("succeeded", 1, ATTEMPTS + 1)


async def test_a_worker_that_closes_hands_its_job_to_the_next_one(place: Place, running_worker: RunningWorker) -> None:
    job = await requested(place, "expand")
    place.gate.touch()
    async with running_worker(place.settings):
        await at_work(place, job)
    handed_back = await row(place.services, job.id)
    place.gate.unlink()
    async with running_worker(place.settings):
        done = await ended(place.services, job.id)

    assert (handed_back.status, handed_back.attempt, handed_back.epoch) == ("queued", 0, 1)
    assert (done.status, done.attempt) == ("succeeded", 1)
    assert await left(place, job) == ("available", 2 * MIB)


async def test_many_volumes_come_and_grow_and_go(place: Place, running_worker: RunningWorker) -> None:
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
