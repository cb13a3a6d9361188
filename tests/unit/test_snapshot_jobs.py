"""What a job on a snapshot says of itself, and how it is carried out without any server."""

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
from tests.unit.worker_fakes import MIB, table_on

VOLUME, SNAPSHOT, CLONE = uuid4(), uuid4(), uuid4()


def a_job(kind: str, *, volume_id: UUID | None = VOLUME, **params: object) -> ClaimedJob:
    job = new_job(
        kind, {"fence": 1, **params}, max_attempts=3, volume_id=volume_id, snapshot_id=SNAPSHOT, backend="memory"
    )
    return ClaimedJob.from_row(job)


TAKE = a_job("snapshot.take", size=MIB)
RESTORE = a_job("snapshot.restore", size=2 * MIB)
DELETE = a_job("snapshot.delete", volume_id=None, of_volume=str(VOLUME))
CLONING = a_job("snapshot.clone", volume_id=CLONE, of_volume=str(VOLUME), size=2 * MIB)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONING], ids=lambda job: job.kind)
def test_every_job_knows_whose_the_snapshot_is(job: ClaimedJob) -> None:
    assert (source_of(job), snapshot_of(job)) == (VOLUME, SNAPSHOT)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONING], ids=lambda job: job.kind)
def test_the_result_names_what_was_made(job: ClaimedJob) -> None:
    made = result_of(job, 3 * MIB)

    assert made == {"snapshot_id": str(SNAPSHOT), "volume_id": str(job.volume_id or VOLUME), "size": 3 * MIB}


def test_where_no_size_is_known_it_is_the_one_that_was_asked_for() -> None:
    assert result_of(TAKE, None)["size"] == MIB
    assert "size" not in result_of(DELETE, None)


def test_only_what_a_kind_of_job_changes_gets_another_size() -> None:
    done = [(TAKE, {"size": 5})]

    assert [ending.size for ending in volume_releases(done, resized=False)] == [None]
    assert [ending.size for ending in snapshot_releases(done, resized=True)] == [5]
    assert [ending.size for ending in volume_releases([(RESTORE, None)], resized=True)] == [None]


def test_a_job_without_its_volume_is_a_mistake_of_ours() -> None:
    with pytest.raises(RuntimeError, match="names no volume"):
        volume_of(DELETE)
    with pytest.raises(RuntimeError, match="names no snapshot"):
        snapshot_of(new_job("snapshot.take", {}, max_attempts=1))


def test_a_wanted_volume_is_in_the_hands_of_its_job() -> None:
    job_id = uuid4()
    row = NewVolume("new", labels={"a": "b"}).to_row(backend="local", size=MIB, job_id=job_id)

    assert (row.state, row.version, row.size, row.job_id, row.labels) == ("creating", 1, MIB, job_id, {"a": "b"})


async def carried_out(driver: MemoryDriver, job: ClaimedJob, *, version: int = 1) -> object:
    return await table_on(driver)[job.kind].perform(job, Grant(job.id, Fence(version, 0), math.inf))


async def test_one_after_the_other_they_do_what_they_are_called() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, 2 * MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    outcomes = [await carried_out(driver, job, version=2) for job in (TAKE, RESTORE, CLONING, DELETE)]

    assert [outcome.result.get("size") for outcome in outcomes if isinstance(outcome, Succeeded)] == [2 * MIB] * 3 + [
        None
    ]
    with pytest.raises(SnapshotMissing):
        await carried_out(driver, RESTORE, version=3)


async def test_only_a_retry_clears_away_what_an_earlier_take_has_left() -> None:
    driver = MemoryDriver()
    await driver.create(VOLUME, MIB, Grant(uuid4(), Fence(1, 0), math.inf))
    await carried_out(driver, TAKE)
    await driver.expand(VOLUME, 2 * MIB, Grant(uuid4(), Fence(2, 0), math.inf))
    rescued = await carried_out(driver, TAKE, version=2)
    retry = a_job("snapshot.take", size=2 * MIB)._replace(retry_of=TAKE.id)
    retried = await carried_out(driver, retry, version=3)

    assert isinstance(rescued, Succeeded)
    assert isinstance(retried, Succeeded)
    assert (rescued.result["size"], retried.result["size"]) == (MIB, 2 * MIB)


@pytest.mark.parametrize("job", [TAKE, RESTORE, DELETE, CLONING], ids=lambda job: job.kind)
async def test_the_seal_shuts_out_what_the_attempt_would_have_published(job: ClaimedJob) -> None:
    driver = MemoryDriver()
    handler = table_on(driver)[job.kind]
    await handler.seal(job, Grant(job.id, Fence(5, 0), math.inf))
    subject = SNAPSHOT if job in (TAKE, DELETE) else job.volume_id

    assert driver._fences == {subject: Fence(5, 0)}
