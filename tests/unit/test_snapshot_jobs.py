"""Snapshot jobs: what their rows and results contain, and their work on the memory driver."""

import math
from uuid import UUID, uuid4

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.attempt import ClaimedJob, Succeeded
from domain.jobs.model import new_job
from domain.storage.context import Fence, Grant
from domain.storage.errors import SnapshotMissing
from domain.storage.memory import MemoryDriver
from domain.storage.null import NullDriver
from domain.storage_work import snapshot_of, source_of, volume_of
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
        project_id=DEFAULT_PROJECT,
    )
    return ClaimedJob.from_row(job)


TAKE = a_job("snapshot.take", of_volume=str(VOLUME), size=MIB)
RESTORE = a_job("snapshot.restore", of_volume=str(VOLUME), size=2 * MIB)
DELETE = a_job("snapshot.delete", volume_id=None, of_volume=str(VOLUME))
CLONE_JOB = a_job("snapshot.clone", volume_id=CLONE, of_volume=str(VOLUME), size=2 * MIB)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONE_JOB], ids=lambda job: job.kind)
def test_every_job_names_the_volume_of_its_snapshot(job: ClaimedJob) -> None:
    assert (source_of(job), snapshot_of(job)) == (VOLUME, SNAPSHOT)


def test_job_without_its_volume_is_an_internal_error() -> None:
    with pytest.raises(RuntimeError, match="names no volume"):
        volume_of(DELETE)
    with pytest.raises(RuntimeError, match="names no snapshot"):
        snapshot_of(new_job("snapshot.take", {}, max_attempts=1, project_id=DEFAULT_PROJECT))


def test_new_volume_is_held_by_its_job() -> None:
    job_id = uuid4()
    row = NewVolume("new", columns={"labels": {"a": "b"}}).to_row(
        backend="local", size=MIB, job_id=job_id, project_id=DEFAULT_PROJECT
    )

    assert (row.state, row.version, row.size, row.job_id, row.labels) == ("creating", 1, MIB, job_id, {"a": "b"})


async def perform(driver: MemoryDriver, job: ClaimedJob, *, version: int = 1) -> object:
    return await handlers_on(driver)[job.kind].perform(job, Grant(job.id, Fence(version, 0), math.inf))


async def test_operations_in_sequence_have_their_effects() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, 2 * MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    outcomes = [await perform(driver, job, version=2) for job in (TAKE, RESTORE, CLONE_JOB, DELETE)]

    snapshot, volume, clone = str(SNAPSHOT), str(VOLUME), str(CLONE)
    assert [outcome.result for outcome in outcomes if isinstance(outcome, Succeeded)] == [
        {"snapshot_id": snapshot, "volume_id": volume, "size": 2 * MIB, "consistency": "crash"},
        {"snapshot_id": snapshot, "volume_id": volume, "size": 2 * MIB},
        {"snapshot_id": snapshot, "volume_id": clone, "size": 2 * MIB},
        {"snapshot_id": snapshot, "volume_id": volume},
    ]
    with pytest.raises(SnapshotMissing):
        await perform(driver, RESTORE, version=3)


async def test_only_a_retry_deletes_the_leftovers_of_an_earlier_take() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    await perform(driver, TAKE)
    await driver.expand(VOLUME, 2 * MIB, Grant(uuid4(), Fence(2, 0), math.inf))
    rescued = await perform(driver, TAKE, version=2)
    retry = a_job("snapshot.take", of_volume=str(VOLUME), size=2 * MIB)._replace(retry_of=TAKE.id)
    retried = await perform(driver, retry, version=3)

    assert isinstance(rescued, Succeeded)
    assert isinstance(retried, Succeeded)
    assert (rescued.result["size"], retried.result["size"]) == (MIB, 2 * MIB)


async def test_result_has_the_requested_size_if_the_backend_stores_none() -> None:
    taken = await handlers_on(NullDriver())["snapshot.take"].perform(TAKE, Grant(TAKE.id, Fence(1, 0), math.inf))

    assert isinstance(taken, Succeeded)
    assert taken.result["size"] == MIB


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONE_JOB], ids=lambda job: job.kind)
async def test_seal_stores_the_fence_of_what_the_job_publishes(job: ClaimedJob) -> None:
    driver = MemoryDriver()
    handler = handlers_on(driver)[job.kind]
    await handler.seal(job, Grant(job.id, Fence(5, 0), math.inf))
    subject = SNAPSHOT if job in (TAKE, DELETE) else job.volume_id

    assert driver._fences == {subject: Fence(5, 0)}
