"""What many ask of volumes and snapshots at once: of those who exclude each other one wins, and nothing sticks."""

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


async def at_rest(services: Services, snapshot_id: UUID) -> bool:
    found = await snapshot_row(services, snapshot_id)
    return (found["state"], found["job_id"]) == ("ready", None)


async def test_of_twenty_takes_at_once_one_is_accepted_and_the_others_hear_whose_the_volume_is(
    services: Services,
) -> None:
    volume = await a_volume(services)
    requests = (services.snapshots.request_take(volume.id, f"s{number}") for number in range(20))
    ends = await asyncio.gather(*requests, return_exceptions=True)
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    refused = [end for end in ends if isinstance(end, VolumeBusy)]

    assert len(refused) == 19
    assert {end.details["job_id"] for end in refused} == {job_id}
    assert await sql(services, "SELECT count(*), min(state) FROM snapshots") == [(1, "taking")]


async def test_of_deleting_a_volume_and_taking_a_snapshot_of_it_exactly_one_wins(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        requests = [
            services.volumes.request_delete(volume.id),
            services.snapshots.request_take(volume.id, "last moment"),
        ]
        ends = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [end for end in ends if isinstance(end, Job)]
        (loser,) = [end for end in ends if not isinstance(end, Job)]

        assert isinstance(loser, VolumeBusy)
        assert loser.details["job_id"] == winner.id
        assert (await carried_out(services, winner)).status == "succeeded"
        if winner.kind == "snapshot.take":
            with pytest.raises(VolumeHasSnapshots):
                await services.volumes.request_delete(volume.id)


async def test_of_deleting_and_restoring_a_snapshot_exactly_one_wins(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        requests = [services.snapshots.request_delete(snapshot.id), services.snapshots.request_restore(snapshot.id)]
        ends = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [end for end in ends if isinstance(end, Job)]
        (loser,) = [end for end in ends if not isinstance(end, Job)]

        assert isinstance(loser, SnapshotBusy)
        assert loser.details["job_id"] == winner.id
        assert (await carried_out(services, winner)).status == "succeeded"
        assert await sql(services, "SELECT state FROM volumes WHERE id = :id", id=volume.id) == [("available",)]


async def test_of_deleting_and_cloning_a_snapshot_exactly_one_wins(services: Services) -> None:
    for number in range(ROUNDS):
        snapshot = await a_snapshot(services, await a_stored_volume(services))
        requests = [
            services.snapshots.request_delete(snapshot.id),
            services.snapshots.request_clone(snapshot.id, NewVolume(f"c{number}")),
        ]
        ends = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [end for end in ends if isinstance(end, Job)]
        (loser,) = [end for end in ends if not isinstance(end, Job)]

        assert isinstance(loser, SnapshotBusy)
        assert (await carried_out(services, winner)).status == "succeeded"


async def test_of_twenty_deletes_at_once_one_is_accepted(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    requests = (services.snapshots.request_delete(snapshot.id) for _ in range(20))
    ends = await asyncio.gather(*requests, return_exceptions=True)

    assert sorted(type(end).__name__ for end in ends) == ["Job"] + ["SnapshotBusy"] * 19


async def test_five_clones_asked_for_at_once_are_all_made_and_the_snapshot_ends_ready(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    jobs = await clones(services, snapshot, 5)
    done = await asyncio.gather(*(carried_out(services, job) for job in jobs))

    assert [job.status for job in done] == ["succeeded"] * 5
    assert {await states(services, job) for job in done} == {("available", "ready")}
    assert (await snapshot_row(services, snapshot.id))["version"] == 1 + 5 + 5


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_clones_that_end_at_the_same_moment_do_not_leave_the_snapshot_to_each_other(
    services: Services, number: int
) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    owned = [await claimed(services, job) for job in await clones(services, snapshot, 6)]
    outcomes = [await attempted(services, own) for _, own in owned]
    settling = (settled(engine, own, outcome) for (engine, own), outcome in zip(owned, outcomes, strict=True))

    assert await asyncio.gather(*settling) == [True] * 6
    assert await at_rest(services, snapshot.id)


async def test_of_two_ends_the_second_waits_for_the_first_and_sees_it(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    (first, job), (second, other) = [await claimed(services, job) for job in await clones(services, snapshot, 2)]
    outcome, other_outcome = await attempted(services, job), await attempted(services, other)
    reached, may_commit = hold_up_the_commit(first)
    one = asyncio.create_task(settled(first, job, outcome))
    await reached.wait()
    two = asyncio.create_task(settled(second, other, other_outcome))
    await somebody_waits_for_a_lock(services)
    may_commit.set()

    assert (await one, await two) == (True, True)
    assert await at_rest(services, snapshot.id)


async def test_a_clone_asked_for_while_the_last_one_ends_has_the_snapshot(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    engine, job = await claimed(services, (await clones(services, snapshot, 1))[0])
    outcome = await attempted(services, job)
    reached, may_commit = hold_up_the_commit(engine)
    ending = asyncio.create_task(settled(engine, job, outcome))
    await reached.wait()
    asking = asyncio.create_task(services.snapshots.request_clone(snapshot.id, NewVolume("late")))
    await somebody_waits_for_a_lock(services)
    may_commit.set()
    assert await ending
    late = await asking

    assert await states(services, late) == ("creating", "cloning")
    assert await states(services, await carried_out(services, late)) == ("available", "ready")


async def test_clones_that_end_well_and_badly_and_begin_at_once_leave_nothing_stuck(services: Services) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    jobs = await clones(services, snapshot, 9)
    endings = [carried_out, given_up, cancelled]
    late = [services.snapshots.request_clone(snapshot.id, NewVolume(f"late{number}")) for number in range(4)]
    ends = await asyncio.gather(*(endings[number % 3](services, job) for number, job in enumerate(jobs)), *late)
    for job in ends[9:]:
        await carried_out(services, job)

    assert await at_rest(services, snapshot.id)
    assert await sql(services, "SELECT status, count(*) FROM jobs GROUP BY 1 ORDER BY 1") == [
        ("cancelled", 3),
        ("failed", 3),
        ("succeeded", 3 + 4),
    ]


async def test_of_retrying_a_take_and_deleting_what_it_left_exactly_one_wins(services: Services) -> None:
    for number in range(ROUNDS):
        volume = await a_stored_volume(services)
        old = await given_up(services, await services.snapshots.request_take(volume.id, "again"))
        assert old.snapshot_id is not None
        requests = [services.jobs.retry(old.id), services.snapshots.request_delete(old.snapshot_id)]
        ends = await asyncio.gather(*requests[:: 1 if number % 2 else -1], return_exceptions=True)
        (winner,) = [end for end in ends if isinstance(end, Job)]

        assert sum(isinstance(end, SnapshotBusy | SnapshotNotFound) for end in ends) == 1
        assert (await carried_out(services, winner)).status == "succeeded"
        assert await sql(services, "SELECT state FROM volumes WHERE id = :id", id=volume.id) == [("available",)]


def hold_up_the_commit(engine: JobEngine) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the foreman's next settlement wait right before its COMMIT: the first event says that it is there."""
    reached, may_commit = asyncio.Event(), asyncio.Event()
    conclude = engine._record_effects

    async def held(*args: Any) -> None:
        await conclude(*args)
        reached.set()
        await may_commit.wait()

    setattr(engine, "_record_effects", held)  # noqa: B010
    return reached, may_commit


async def somebody_waits_for_a_lock(services: Services) -> None:
    async with asyncio.timeout(20):
        while not await sql(
            services,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        ):
            await asyncio.sleep(0.01)
