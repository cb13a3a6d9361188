"""Snapshot jobs: what their rows and results contain, and their work on the memory driver."""

import math
from uuid import UUID, uuid4

import pytest

from domain.jobs.claimed import ClaimedJob
from domain.jobs.model import new_job
from domain.jobs.outcomes import Succeeded
from domain.snapshots.operations import result_of, snapshot_of, snapshot_releases, source_of, volume_releases
from domain.storage.context import Fence, Grant
from domain.storage.errors import SnapshotMissing
from domain.storage.memory import MemoryDriver
from domain.volumes.operations import volume_of
from domain.volumes.service import NewVolume
from tests.unit.worker_fakes import MIB, handlers_on

VOLUME, SNAPSHOT, CLONE = uuid4(), uuid4(), uuid4()


def a_job(kind: str, *, volume_id: UUID | None = VOLUME, **params: object) -> ClaimedJob:
    job = new_job(
        kind,
        {"fence_version": 1, **params},
        max_attempts=3,
        volume_id=volume_id,
        snapshot_id=SNAPSHOT,
        backend="memory",
    )
    return ClaimedJob.from_row(job)


TAKE = a_job("snapshot.take", size=MIB)
RESTORE = a_job("snapshot.restore", size=2 * MIB)
DELETE = a_job("snapshot.delete", volume_id=None, of_volume=str(VOLUME))
CLONE_JOB = a_job("snapshot.clone", volume_id=CLONE, of_volume=str(VOLUME), size=2 * MIB)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONE_JOB], ids=lambda job: job.kind)
def test_every_job_names_the_volume_of_its_snapshot(job: ClaimedJob) -> None:
    assert (source_of(job), snapshot_of(job)) == (VOLUME, SNAPSHOT)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONE_JOB], ids=lambda job: job.kind)
def test_result_names_snapshot_volume_and_size(job: ClaimedJob) -> None:
    payload = result_of(job, 3 * MIB)

    assert payload == {"snapshot_id": str(SNAPSHOT), "volume_id": str(job.volume_id or VOLUME), "size": 3 * MIB}


def test_result_without_reported_size_has_the_requested_one() -> None:
    assert result_of(TAKE, None)["size"] == MIB
    assert "size" not in result_of(DELETE, None)


def test_releases_change_sizes_only_if_resized() -> None:
    succeeded = [(TAKE, {"size": 5})]

    assert [release.size for release in volume_releases(succeeded, resized=False)] == [None]
    assert [release.size for release in snapshot_releases(succeeded, resized=True)] == [5]
    assert [release.size for release in volume_releases([(RESTORE, None)], resized=True)] == [None]


def test_job_without_its_volume_is_an_internal_error() -> None:
    with pytest.raises(RuntimeError, match="names no volume"):
        volume_of(DELETE)
    with pytest.raises(RuntimeError, match="names no snapshot"):
        snapshot_of(new_job("snapshot.take", {}, max_attempts=1))


def test_new_volume_is_held_by_its_job() -> None:
    job_id = uuid4()
    row = NewVolume("new", labels={"a": "b"}).to_row(backend="local", size=MIB, job_id=job_id)

    assert (row.state, row.version, row.size, row.job_id, row.labels) == ("creating", 1, MIB, job_id, {"a": "b"})


async def perform(driver: MemoryDriver, job: ClaimedJob, *, version: int = 1) -> object:
    return await handlers_on(driver)[job.kind].perform(job, Grant(job.id, Fence(version, 0), math.inf))


async def test_operations_in_sequence_have_their_effects() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, 2 * MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    outcomes = [await perform(driver, job, version=2) for job in (TAKE, RESTORE, CLONE_JOB, DELETE)]

    assert [outcome.result.get("size") for outcome in outcomes if isinstance(outcome, Succeeded)] == [2 * MIB] * 3 + [
        None
    ]
    with pytest.raises(SnapshotMissing):
        await perform(driver, RESTORE, version=3)


async def test_only_a_retry_deletes_the_leftovers_of_an_earlier_take() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    await perform(driver, TAKE)
    await driver.expand(VOLUME, 2 * MIB, Grant(uuid4(), Fence(2, 0), math.inf))
    rescued = await perform(driver, TAKE, version=2)
    retry = a_job("snapshot.take", size=2 * MIB)._replace(retry_of=TAKE.id)
    retried = await perform(driver, retry, version=3)

    assert isinstance(rescued, Succeeded)
    assert isinstance(retried, Succeeded)
    assert (rescued.result["size"], retried.result["size"]) == (MIB, 2 * MIB)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONE_JOB], ids=lambda job: job.kind)
async def test_seal_stores_the_fence_of_what_the_job_publishes(job: ClaimedJob) -> None:
    driver = MemoryDriver()
    handler = handlers_on(driver)[job.kind]
    await handler.seal(job, Grant(job.id, Fence(5, 0), math.inf))
    subject = SNAPSHOT if job in (TAKE, DELETE) else job.volume_id

    assert driver._fences == {subject: Fence(5, 0)}
