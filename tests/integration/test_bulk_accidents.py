"""Bulk expansion under faults: double settlement, dead lanes, held storage locks, lost counters."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.ledger import AS_CANCELLED
from domain.bulk.model import ItemStatus, Lane
from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.jobs.attempt import Delegated, Failed
from domain.services import Services, compose, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant, Stopped
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.bulk_builders import BY_ONE, a_claimed_lane, an_engine, kill_lanes, lanes_of, planned
from tests.integration.bulk_builders import items as items_of
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import an_engine as an_engine_that_rescues_at_once
from tests.integration.job_builders import everything, run_out, sql
from tests.support.bulk import MIB, add_volumes, ended


@pytest.fixture
def bulk_settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"backends": {"files": f"file:{tmp_path}/volumes", "null": "null:"}})


@pytest.fixture
async def services(bulk_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(bulk_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def on_disk(services: Services, settings: Settings, running_worker: RunningWorker, count: int = 1) -> list[UUID]:
    async with running_worker(settings):
        jobs = [await services.volumes.request_create(NewVolume(f"v{n}", MIB, "files")) for n in range(count)]
        return [(await ended(services, job)).volume_id or UUID(int=0) for job in jobs]


async def test_job_delegated_twice_gets_its_lanes_once(services: Services) -> None:
    await add_volumes(services, 3, backend="null")
    engine = an_engine(services)
    job = await planned(services, engine, BulkExpandRequest(BY_ONE, max_concurrent=3))

    settled = [await engine.settle(job, Delegated({})) for _ in range(2)]

    assert settled == [True, False]
    assert len(await lanes_of(services, job)) == 3


async def test_planning_may_take_longer_than_other_transactions(services: Services) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    job = await services.bulk.request(BulkExpandRequest(BY_ONE))
    claim = await an_engine(services).claim(job.message)
    assert claim is not None
    database = Database(services.settings.database_url, timeout=0.5)
    handler = compose(services.settings, database, services.queue, services.backends, uuid4()).handlers[job.kind]
    try:
        async with services.database.transaction() as session:
            await session.execute(text("LOCK TABLE job_items IN SHARE MODE"))
            planning = asyncio.create_task(handler.perform(claim.job, Grant(job.id, Fence(0, 0), claim.deadline)))
            await asyncio.sleep(1)

        assert await planning == Delegated({})
    finally:
        await database.close()
    assert [*await items_of(services, job)] == [volume_id]


async def test_delegated_job_gets_no_lease_by_renewal(services: Services) -> None:
    await add_volumes(services, 3, backend="null")
    engine = an_engine(services)
    job = await planned(services, engine, BulkExpandRequest(BY_ONE))
    await engine.settle(job, Delegated({}))

    renewed = await engine.renew([job.id])

    assert (list(renewed.renewals), (await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).lease_expires_at) == (
        [],
        None,
    )


async def test_lost_counters_are_restored_from_the_ledger(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 3, backend="null")
    async with running_worker(bulk_settings):
        job = await ended(services, await services.bulk.request(BulkExpandRequest(BY_ONE)))
    await kill_lanes(services, job)  # lanes without items left that have not been settled
    async with services.database.transaction() as session:
        await session.execute(
            text("UPDATE jobs SET status = 'running', finished_at = NULL, succeeded = 1 WHERE id = :id"), {"id": job.id}
        )

    await services.bulk.assign_lanes()

    job = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
    assert (job.status, job.succeeded, job.total) == ("succeeded", 3, 3)


async def test_volumes_expanded_by_a_dead_lane_are_completed_by_the_next(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, caplog: pytest.LogCaptureFixture
) -> None:
    (volume_id,) = await on_disk(services, bulk_settings, running_worker)
    job, claim = await a_claimed_lane(services, an_engine(services), epoch=9)
    lane = Lane.from_job(claim.job)
    chunks, grant = services.bulk.lane_steps(lane), Grant(claim.job.id, Fence(0, 9), claim.deadline)
    items = await chunks.claim_items(10)
    for work in await chunks.acquire_volumes(items, {}):
        assert await chunks.operation.work_on(work, grant) is not None  # published with epoch 9; then the lane dies
    await kill_lanes(services, job)

    async with running_worker(bulk_settings):
        job = await ended(services, job)

    volume = await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)
    assert (job.status, job.succeeded) == ("succeeded", 1)
    assert (volume.state, volume.size) == ("available", 2 * MIB)
    assert "fence.raised" not in caplog.text, "the next lane begins above the fences of the dead one"


async def test_last_lane_releases_volumes_with_the_sizes_found(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    grown, untouched = await on_disk(services, bulk_settings, running_worker, count=2)
    job, claim = await a_claimed_lane(services, an_engine(services))
    lane = Lane.from_job(claim.job)
    chunks, grant = services.bulk.lane_steps(lane), Grant(claim.job.id, Fence(0, 0), claim.deadline)
    all_work = await chunks.acquire_volumes(await chunks.claim_items(10), {})
    await chunks.operation.work_on(next(work for work in all_work if work.volume_id == grown), grant)
    await kill_lanes(services, job)
    async with services.database.transaction() as session:
        await session.execute(text("UPDATE jobs SET attempt = max_attempts WHERE id = :id"), {"id": job.id})

    async with running_worker(bulk_settings):
        job = await ended(services, job)

    items = await services.bulk.items(job.id, ItemStatus.FAILED, after=None, limit=10, project_id=DEFAULT_PROJECT)
    found = [await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT) for volume_id in (grown, untouched)]
    assert (job.status, {item.code for item in items}) == ("failed", {"lanes-lost"})
    assert [(volume.state, volume.size) for volume in found] == [("available", 2 * MIB), ("available", MIB)]


async def test_volume_with_a_held_storage_lock_stays_claimed_until_unlocked(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    (volume_id,) = await on_disk(services, bulk_settings, running_worker)
    with (tmp_path / "volumes" / ".fences" / str(volume_id)).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with running_worker(bulk_settings):
            job = await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=1))
            async with asyncio.timeout(60):
                while (
                    max(
                        [
                            (await services.jobs.get(lane, project_id=DEFAULT_PROJECT)).epoch
                            for lane in await lanes_of(services, job)
                        ]
                        or [0]
                    )
                    < 2
                ):
                    await asyncio.sleep(0.05)
            assert (await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)).state == "expanding"
            fcntl.flock(lock, fcntl.LOCK_UN)
            job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", 1)
    assert (await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)).size == 2 * MIB


async def test_volume_that_crashes_the_driver_fails_alone(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await add_volumes(services, 20, backend="null")
    expand = type(services.backends.driver("null")).expand

    async def crash_for_one(self: object, volume_id: UUID, size: int, grant: Grant) -> int:
        if volume_id == volumes[7]:
            raise ValueError("a bug")
        return await expand(self, volume_id, size, grant)  # type: ignore[arg-type]

    monkeypatch.setattr(type(services.backends.driver("null")), "expand", crash_for_one)
    async with running_worker(bulk_settings):
        job = await ended(services, await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=5)))

    items = await services.bulk.items(job.id, ItemStatus.FAILED, after=None, limit=10, project_id=DEFAULT_PROJECT)
    assert (job.status, job.succeeded) == ("partial", 19)
    assert [(item.volume_id, item.code) for item in items] == [(volumes[7], "internal")]


async def test_items_of_a_failed_lane_are_left_to_the_next(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 5, backend="null")
    engine = an_engine(services)
    job, claim = await a_claimed_lane(services, engine)
    lane = Lane.from_job(claim.job)
    await services.bulk.lane_steps(lane).claim_items(3)
    await engine.settle(claim.job, Failed({"code": "internal", "detail": "a bug"}))

    async with running_worker(bulk_settings):
        job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", 5)


async def test_rescued_lane_changes_nothing(services: Services) -> None:
    await add_volumes(services, 3, backend="null")
    _, claim = await a_claimed_lane(services, an_engine(services))
    lane = Lane.from_job(claim.job)
    chunks = services.bulk.lane_steps(lane)
    items = await chunks.claim_items(2)
    await run_out(services, lane.job_id)
    assert await an_engine_that_rescues_at_once(services).maintenance.rescue() == 1
    before = await ledger(services)

    for late in (
        *(
            chunks.reclaim_items(),
            chunks.claim_items(1),
            chunks.acquire_volumes(items, {}),
            chunks.close_pending(AS_CANCELLED),
        ),
        *(chunks.resume(), chunks.claim_next(1)),
    ):
        with pytest.raises(Stopped):
            await late
    with pytest.raises(Stopped):
        await chunks.record([])

    assert await ledger(services) == before


async def ledger(services: Services) -> list[object]:
    return [*await everything(services), *await sql(services, "SELECT * FROM job_items ORDER BY volume_id")]


async def test_lane_never_claims_more_than_its_limit(services: Services) -> None:
    await add_volumes(services, 60, backend="null")
    _, claim = await a_claimed_lane(services, an_engine(services))
    lane = Lane.from_job(claim.job)

    assert len(await services.bulk.lane_steps(lane).claim_items(4)) == 4
    assert (await services.bulk.lane_steps(lane).claim_next(4)).item_count == 4


async def test_claim_without_measuring_acquires_volumes_and_stores_sizes(
    services: Services,
) -> None:
    await add_volumes(services, 5, backend="null")
    job, claim = await a_claimed_lane(services, an_engine(services), epoch=3)
    lane = Lane.from_job(claim.job)

    chunk = await services.bulk.lane_steps(lane).claim_next(4)

    held = await items_of(services, job, ItemStatus.CLAIMED)
    assert (chunk.item_count, len(held)) == (4, 4)
    assert {work.volume_id for work in chunk.work} == set(held)
    assert {(item.lane_id, item.epoch, item.from_size, item.to_size) for item in held.values()} == {
        (claim.job.id, 3, MIB, 2 * MIB)
    }
    assert {(await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)).state for volume_id in held} == {
        "expanding"
    }


@pytest.mark.parametrize("policy", [BY_ONE, GrowthPolicy(by=MIB, usage_above=80)], ids=["locked", "claimed"])
async def test_item_of_a_busy_volume_becomes_pending_again(services: Services, policy: GrowthPolicy) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    job, claim = await a_claimed_lane(services, an_engine(services), policy)
    lane = Lane.from_job(claim.job)
    await services.volumes.request_expand(volume_id, Growth(to=7 * MIB))

    chunk = await services.bulk.lane_steps(lane).claim_next(4)

    (item,) = (await items_of(services, job)).values()
    assert (chunk.item_count, chunk.work) == (1, [])
    assert (item.status, item.code, item.busy_since is None) == ("pending", "volume-busy", False)
    assert (await services.bulk.lane_steps(lane).claim_next(4)).item_count == 0, "it is not due yet"
