"""Concurrent operations on volumes and snapshots: one of conflicting requests is accepted, and no row is stuck."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from domain.errors import SnapshotBusy, SnapshotNotFound, VolumeBusy, VolumeHasSnapshots
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job
from domain.services import Services
from domain.snapshots.model import Snapshot
from domain.volumes.service import NewVolume
from tests.integration.job_builders import a_volume, sql
from tests.integration.snapshot_builders import (
    a_snapshot,
    a_stored_volume,
    attempted,
    carried_out,
    claimed,
    given_up,
    settled,
    snapshot_row,
    states,
)

ROUNDS = 8


async def cancelled(services: Services, job: Job) -> Job:
    return await services.jobs.cancel(job.id)


async def clones(services: Services, snapshot: Snapshot, count: int) -> list[Job]:
    requests = (services.snapshots.request_clone(snapshot.id, NewVolume(f"c{number}")) for number in range(count))
    return list(await asyncio.gather(*requests))


async def is_ready(services: Services, snapshot_id: UUID) -> bool:
    found = await snapshot_row(services, snapshot_id)
    return (found["state"], found["job_id"]) == ("ready", None)


async def test_one_of_twenty_concurrent_takes_is_accepted_and_others_get_its_job(
    services: Services,
) -> None:
    volume = await a_volume(services)
    requests = (services.snapshots.request_take(volume.id, f"s{number}") for number in range(20))
    results = await asyncio.gather(*requests, return_exceptions=True)
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    refused = [result for result in results if isinstance(result, VolumeBusy)]

    assert len(refused) == 19
    assert {result.details["job_id"] for result in refused} == {job_id}
    assert await sql(services, "SELECT count(*), min(state) FROM snapshots") == [(1, "taking")]


async def test_one_of_concurrent_volume_delete_and_snapshot_take_is_accepted(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        requests = [
            services.volumes.request_delete(volume.id),
            services.snapshots.request_take(volume.id, "last moment"),
        ]
        results = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [result for result in results if isinstance(result, Job)]
        (loser,) = [result for result in results if not isinstance(result, Job)]

        assert isinstance(loser, VolumeBusy)
        assert loser.details["job_id"] == winner.id
        assert (await carried_out(services, winner)).status == "succeeded"
        if winner.kind == "snapshot.take":
            with pytest.raises(VolumeHasSnapshots):
                await services.volumes.request_delete(volume.id)


async def test_one_of_concurrent_snapshot_delete_and_restore_is_accepted(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        requests = [services.snapshots.request_delete(snapshot.id), services.snapshots.request_restore(snapshot.id)]
        results = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [result for result in results if isinstance(result, Job)]
        (loser,) = [result for result in results if not isinstance(result, Job)]

        assert isinstance(loser, SnapshotBusy)
        assert loser.details["job_id"] == winner.id
        assert (await carried_out(services, winner)).status == "succeeded"
        assert await sql(services, "SELECT state FROM volumes WHERE id = :id", id=volume.id) == [("available",)]


async def test_one_of_concurrent_snapshot_delete_and_clone_is_accepted(services: Services) -> None:
    for number in range(ROUNDS):
        snapshot = await a_snapshot(services, await a_stored_volume(services))
        requests = [
            services.snapshots.request_delete(snapshot.id),
            services.snapshots.request_clone(snapshot.id, NewVolume(f"c{number}")),
        ]
        results = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [result for result in results if isinstance(result, Job)]
        (loser,) = [result for result in results if not isinstance(result, Job)]

        assert isinstance(loser, SnapshotBusy)
        assert (await carried_out(services, winner)).status == "succeeded"


async def test_one_of_twenty_concurrent_deletes_is_accepted(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    requests = (services.snapshots.request_delete(snapshot.id) for _ in range(20))
    results = await asyncio.gather(*requests, return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Job"] + ["SnapshotBusy"] * 19


async def test_five_concurrent_clones_succeed_and_the_snapshot_ends_ready(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    jobs = await clones(services, snapshot, 5)
    done = await asyncio.gather(*(carried_out(services, job) for job in jobs))

    assert [job.status for job in done] == ["succeeded"] * 5
    assert {await states(services, job) for job in done} == {("available", "ready")}
    assert (await snapshot_row(services, snapshot.id))["version"] == 1 + 5 + 5


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_snapshot_is_released_when_clones_end_simultaneously(services: Services, number: int) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    claims = [await claimed(services, job) for job in await clones(services, snapshot, 6)]
    outcomes = [await attempted(services, own) for _, own in claims]
    settling = (settled(engine, own, outcome) for (engine, own), outcome in zip(claims, outcomes, strict=True))

    assert await asyncio.gather(*settling) == [True] * 6
    assert await is_ready(services, snapshot.id)


async def test_second_of_two_settlements_waits_for_and_sees_the_first(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    (first, job), (second, other) = [await claimed(services, job) for job in await clones(services, snapshot, 2)]
    outcome, other_outcome = await attempted(services, job), await attempted(services, other)
    reached, may_commit = pause_before_commit(first)
    one = asyncio.create_task(settled(first, job, outcome))
    await reached.wait()
    two = asyncio.create_task(settled(second, other, other_outcome))
    await wait_until_a_lock_is_awaited(services)
    may_commit.set()

    assert (await one, await two) == (True, True)
    assert await is_ready(services, snapshot.id)


async def test_clone_requested_while_the_last_one_ends_acquires_the_snapshot(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    engine, job = await claimed(services, (await clones(services, snapshot, 1))[0])
    outcome = await attempted(services, job)
    reached, may_commit = pause_before_commit(engine)
    ending = asyncio.create_task(settled(engine, job, outcome))
    await reached.wait()
    asking = asyncio.create_task(services.snapshots.request_clone(snapshot.id, NewVolume("late")))
    await wait_until_a_lock_is_awaited(services)
    may_commit.set()
    assert await ending
    late = await asking

    assert await states(services, late) == ("creating", "cloning")
    assert await states(services, await carried_out(services, late)) == ("available", "ready")


async def test_mixed_concurrent_clones_leave_the_snapshot_ready(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    jobs = await clones(services, snapshot, 9)
    actions = [carried_out, given_up, cancelled]
    late = [services.snapshots.request_clone(snapshot.id, NewVolume(f"late{number}")) for number in range(4)]
    results = await asyncio.gather(*(actions[number % 3](services, job) for number, job in enumerate(jobs)), *late)
    for job in results[9:]:
        await carried_out(services, job)

    assert await is_ready(services, snapshot.id)
    assert await sql(services, "SELECT status, count(*) FROM jobs GROUP BY 1 ORDER BY 1") == [
        ("cancelled", 3),
        ("failed", 3),
        ("succeeded", 3 + 4),
    ]


async def test_one_of_concurrent_take_retry_and_snapshot_delete_is_accepted(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        old = await given_up(services, await services.snapshots.request_take(volume.id, "again"))
        assert old.snapshot_id is not None
        requests = [services.jobs.retry(old.id), services.snapshots.request_delete(old.snapshot_id)]
        results = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [result for result in results if isinstance(result, Job)]

        assert sum(isinstance(result, SnapshotBusy | SnapshotNotFound) for result in results) == 1
        assert (await carried_out(services, winner)).status == "succeeded"
        assert await sql(services, "SELECT state FROM volumes WHERE id = :id", id=volume.id) == [("available",)]


def pause_before_commit(engine: JobEngine) -> tuple[asyncio.Event, asyncio.Event]:
    """Pause the engine's next settlement before its COMMIT: the first event is set there, the second one resumes it."""
    reached, may_commit = asyncio.Event(), asyncio.Event()
    record_effects = engine._record_effects

    async def paused(*args: Any) -> None:
        await record_effects(*args)
        reached.set()
        await may_commit.wait()

    setattr(engine, "_record_effects", paused)  # noqa: B010
    return reached, may_commit


async def wait_until_a_lock_is_awaited(services: Services) -> None:
    async with asyncio.timeout(20):
        while not await sql(
            services,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        ):
            await asyncio.sleep(0.01)
