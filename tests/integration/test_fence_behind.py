"""A database that has lost history, as in a failover with asynchronous replication: the storage's fences are ahead.

Jobs go on by themselves, unless a later attempt really exists.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.model import ItemRef, ItemStatus, Lane
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.jobs.attempt import ClaimedJob, FenceBehind, Outcome, RetryPolicy, Succeeded
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant, Stopped
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.bulk_builders import BY_ONE, a_claimed_lane
from tests.integration.bulk_builders import an_engine as a_lane_engine
from tests.integration.check_builders import findings, grant_at, on_disk
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, everything, row, run_out, set_job, sql, volume_row
from tests.integration.job_builders import ended as has_ended
from tests.integration.snapshot_builders import a_stored_volume, claimed, requested
from worker.performer import AttemptPerformer

KINDS = [
    "volume.create",
    "volume.clone",
    "volume.expand",
    "volume.delete",
    "snapshot.take",
    "snapshot.restore",
    "snapshot.clone",
    "snapshot.delete",
]
#: What the storage has seen and the database has lost: attempts at the same operation, or later operations.
ATTEMPTS, OPERATIONS = "attempts", "operations"


@pytest.fixture
def disk(settings: Settings, tmp_path: Path) -> Settings:
    return on_disk(settings, tmp_path).model_copy(update={"retry_seconds": 0.05})


@pytest.fixture
async def services(disk: Settings) -> AsyncIterator[Services]:
    async with open_services(disk, adopt=True) as services:
        yield services


async def a_job(services: Services, kind: str) -> Job:
    if kind == "volume.create":
        return await services.volumes.request_create(NewVolume("new", MIB))
    volume = await a_stored_volume(services, backend="disk", content=b"bytes")
    if kind == "volume.expand":
        return await services.volumes.request_expand(volume.id, Growth(to=3 * MIB))
    if kind == "volume.delete":
        return await services.volumes.request_delete(volume.id)
    return await requested(services, kind, volume)


async def go_ahead(services: Services, job: Job, lost: str = OPERATIONS) -> Fence:
    """Raise the fence of what a job publishes, as attempts do that the database has lost."""
    version = job.params["fence_version"]
    fence = Fence(version, 7) if lost == ATTEMPTS else Fence(version + 5, 2)
    driver = services.backends.get("disk")
    if job.kind in ("snapshot.take", "snapshot.delete") and job.snapshot_id is not None:
        await driver.seal_snapshot(UUID(job.params["of_volume"]), job.snapshot_id, grant_at(*fence))
    elif job.volume_id is not None:
        await driver.seal(job.volume_id, grant_at(*fence))
    return fence


async def attempted(services: Services, own: ClaimedJob) -> Outcome:
    """Perform a job as a worker does, without settling it."""
    performer = AttemptPerformer(services.handlers, RetryPolicy(0.0))
    return await performer.perform(own, Grant(own.id, own.fence, float("inf")))


@pytest.mark.parametrize("lost", [ATTEMPTS, OPERATIONS])
@pytest.mark.parametrize("kind", KINDS)
async def test_job_behind_the_storages_fence_goes_on_by_itself_and_spends_no_attempt(
    services: Services, disk: Settings, running_worker: RunningWorker, kind: str, lost: str
) -> None:
    job = await a_job(services, kind)
    stored = await go_ahead(services, job, lost)
    async with running_worker(disk):
        ended = await has_ended(services, job.id)
    overtaken = (kind, lost) == ("snapshot.restore", OPERATIONS)

    assert (ended.status, ended.attempt) == ("cancelled" if overtaken else "succeeded", 1)
    assert ended.params["fence_version"] > stored.version
    assert ended.epoch > stored.epoch
    assert await findings(services) == []


async def test_restore_that_later_operations_have_followed_is_not_repeated(
    services: Services, disk: Settings, running_worker: RunningWorker
) -> None:
    job = await a_job(services, "snapshot.restore")
    await go_ahead(services, job)
    data = Path(str(services.backends.get("disk").path(job.volume_id or job.id)))
    data.write_bytes(b"later".ljust(MIB, b"\0"))
    async with running_worker(disk):
        ended = await has_ended(services, job.id)

    assert (ended.error or {})["code"] == "fence-refused"
    assert data.read_bytes()[:5] == b"later"
    assert (await volume_row(services, job.volume_id))["state"] == "available"


async def test_cancelled_job_behind_the_storages_fence_is_sealed_and_ends(
    services: Services, disk: Settings, running_worker: RunningWorker
) -> None:
    job = await a_job(services, "volume.expand")
    await go_ahead(services, job)
    await set_job(services, job.id, "cancel_requested_at = now(), started_at = now()")
    async with running_worker(disk):
        ended = await has_ended(services, job.id)

    assert ended.status == "cancelled"
    assert await findings(services) == []


async def test_job_that_has_spent_its_attempts_on_a_fence_fails_instead_of_being_stuck(
    services: Services, disk: Settings, running_worker: RunningWorker
) -> None:
    job = await a_job(services, "volume.expand")
    await go_ahead(services, job)
    await set_job(services, job.id, "attempt = max_attempts + 2")
    async with running_worker(disk):
        ended = await has_ended(services, job.id)

    assert ended.status == "failed"
    assert (await volume_row(services, job.volume_id))["state"] == "available"


async def test_bulk_job_behind_the_storages_fences_does_every_volume(
    services: Services, disk: Settings, running_worker: RunningWorker
) -> None:
    volumes = [await a_stored_volume(services, backend="disk") for _ in range(5)]
    for volume in volumes[:3]:
        await services.backends.get("disk").seal(volume.id, grant_at(40, 2))
    job = await services.bulk.request(BulkExpandRequest(BY_ONE))
    async with running_worker(disk):
        ended = await has_ended(services, job.id)

    assert (ended.status, ended.succeeded, ended.failed) == ("succeeded", 5, 0)


async def test_bulk_snapshot_behind_the_storages_fence_is_taken(services: Services) -> None:
    """The fence of a bulk snapshot belongs to the snapshot, whose id is new: only its own lost attempts are ahead."""
    volume = await a_stored_volume(services, backend="disk")
    engine = a_lane_engine(services)
    parent = await services.bulk.request(BulkSnapshotRequest("nightly", max_concurrent=1))
    claim = await engine.claim(parent.message)
    assert claim is not None
    outcome = await services.handlers[parent.kind].perform(claim.job, Grant(parent.id, Fence(0, 0), claim.deadline))
    await engine.settle(claim.job, outcome)
    ((lane_id,),) = await sql(services, "SELECT id FROM jobs WHERE parent_id = :id", id=parent.id)
    claim = await engine.claim((await row(services, lane_id)).message)
    assert claim is not None
    steps = services.bulk.lane_steps(Lane.from_job(claim.job))
    grant = Grant(claim.job.id, claim.job.fence, claim.deadline)
    (work,) = (await steps.claim_next(10)).work
    assert work.update.snapshot_id is not None
    await services.backends.get("disk").seal_snapshot(volume.id, work.update.snapshot_id, grant_at(9, 9))

    refused = await steps.operation.work_on(work, grant)
    assert refused is not None
    await steps.record([refused])
    (again,) = await steps.acquire_volumes([ItemRef(volume.id, ItemStatus.CLAIMED)], {})
    taken = await steps.operation.work_on(again, grant)
    assert taken is not None
    await steps.record([taken])

    assert (refused.stored, taken.update.status) == (Fence(9, 9), "succeeded")


@pytest.mark.parametrize("settled", [False, True])
async def test_attempt_that_a_later_one_has_overtaken_changes_nothing_when_it_wakes_up(
    services: Services, *, settled: bool
) -> None:
    job = await a_job(services, "volume.expand")
    paused_engine, paused = await claimed(services, job)
    await run_out(services, job.id)
    assert await paused_engine.maintenance.rescue() == 1
    engine, own = await claimed(services, job)
    done = await attempted(services, own)
    assert isinstance(done, Succeeded)
    if settled:
        assert await engine.settle(own, done)
    before = await everything(services)

    late = await attempted(services, paused)

    assert isinstance(late, FenceBehind)
    assert await paused_engine.settle(paused, late) is False
    assert await everything(services) == before
    if not settled:
        assert await engine.settle(own, done)


async def test_attempt_whose_job_waits_for_the_next_one_raises_no_fence(services: Services) -> None:
    job = await a_job(services, "volume.expand")
    engine, paused = await claimed(services, job)
    await run_out(services, job.id)
    await engine.maintenance.rescue()
    before = await everything(services)

    assert await engine.settle(paused, FenceBehind(Fence(9, 9), 0.0, {"code": "fence-refused"})) is False
    assert await everything(services) == before


async def test_lane_that_a_later_attempt_has_overtaken_raises_no_fence(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    engine = a_lane_engine(services)
    _, claim = await a_claimed_lane(services, engine)
    steps = services.bulk.lane_steps(Lane.from_job(claim.job))
    (work,) = (await steps.claim_next(10)).work
    await services.backends.get("disk").seal(volume.id, grant_at(work.version, 9))
    result = await steps.operation.work_on(work, Grant(claim.job.id, claim.job.fence, claim.deadline))
    assert result is not None
    await set_job(services, claim.job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    before = await everything(services)

    with pytest.raises(Stopped):
        await steps.record([result])

    assert result.stored == Fence(work.version, 9)
    assert await everything(services) == before
