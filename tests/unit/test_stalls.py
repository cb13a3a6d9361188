"""What stands still is said once, is not taken on a second time here, and is news again when it moves."""

import time
from uuid import UUID

import pytest

from domain.jobs.outcomes import Done
from domain.storage.driver import Fence, Grant
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeForeman, a_job, a_runner
from worker.runner import Running
from worker.stalls import Stalls


def at_work(count: int, *, progressed: float) -> dict[UUID, Running]:
    """Jobs that moved on ``progressed`` seconds ago."""
    running = {}
    for _ in range(count):
        job = a_job()
        running[job.id] = Running(job, Grant(job.id, Fence(1, 0), time.monotonic() + 60))
        running[job.id].grant.lease.progressed_at -= progressed
    return running


def count_of(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(f"'{event}'" in record.getMessage() for record in caplog.records)


def test_what_stands_still_is_marked_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    still, moving = at_work(2, progressed=61), at_work(3, progressed=59)
    stalls = Stalls(still | moving, stall=60, slots=10)
    stalls.look()
    stalls.look()

    assert all(run.grant.lease.stalled for run in still.values())
    assert not any(run.grant.lease.stalled for run in moving.values())
    assert (count_of(caplog, "job.stalled"), count_of(caplog, "worker.stuck")) == (2, 0)
    assert all(str(run.job.volume_id) in caplog.text for run in still.values())


def test_what_moves_again_is_said_and_no_longer_marked(caplog: pytest.LogCaptureFixture) -> None:
    running = at_work(1, progressed=61)
    stalls = Stalls(running, stall=60, slots=10)
    stalls.look()
    (run,) = running.values()
    run.grant.check()
    stalls.look()

    assert not run.grant.lease.stalled
    assert count_of(caplog, "job.moves_again") == 1


def test_a_worker_in_whose_every_slot_storage_hangs_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    stalls = Stalls(at_work(3, progressed=61), stall=60, slots=3)
    stalls.look()
    stalls.look()

    assert count_of(caplog, "worker.stuck") == 1


async def test_a_job_that_hangs_here_is_left_to_others_until_it_moves() -> None:
    job = a_job()
    foreman = FakeForeman(job)
    runner = a_runner(foreman, MemoryDriver())
    hung = Running(job, Grant(job.id, Fence(1, 0), time.monotonic() + 60))
    hung.grant.lease.stalled = True
    runner.running[job.id] = hung
    await runner.run(job.ring)
    assert foreman.claims == []
    del runner.running[job.id]
    await runner.run(job.ring)

    assert isinstance(foreman.settled[0], Done)
