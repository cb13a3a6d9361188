"""What stands still is said once, is not taken on a second time here, and is news again when it moves."""

import asyncio
import time
from collections.abc import Collection, Mapping
from uuid import UUID

import pytest

from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import NOTHING_COPIED, Renewed
from domain.jobs.outcomes import Outcome, Succeeded
from domain.jobs.store.leases import Progress
from domain.storage.context import Fence, Grant
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import LEASE, FakeJobEngine, a_job, a_runner, until
from worker.heartbeat import Heartbeat
from worker.runner import Running
from worker.stalls import Stalls


def at_work(count: int, *, progressed: float) -> dict[UUID, Running]:
    """Jobs that moved on ``progressed`` seconds ago."""
    running = {}
    for _ in range(count):
        job = a_job()
        running[job.id] = Running(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), time.monotonic() + 60))
        running[job.id].grant.lease.progressed_at -= progressed
    return running


def count_of(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(f"'{event}'" in record.getMessage() for record in caplog.records)


def test_what_stands_still_is_marked_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    still, moving = at_work(2, progressed=61), at_work(3, progressed=59)
    stalls = Stalls(still | moving, stall=60, slots=10)
    stalls.check()
    stalls.check()

    assert all(run.grant.lease.stalled for run in still.values())
    assert not any(run.grant.lease.stalled for run in moving.values())
    assert (count_of(caplog, "job.stalled"), count_of(caplog, "worker.stuck")) == (2, 0)
    assert all(str(run.job.volume_id) in caplog.text for run in still.values())


def test_what_moves_again_is_said_and_no_longer_marked(caplog: pytest.LogCaptureFixture) -> None:
    running = at_work(1, progressed=61)
    stalls = Stalls(running, stall=60, slots=10)
    stalls.check()
    (run,) = running.values()
    run.grant.check()
    stalls.check()

    assert not run.grant.lease.stalled
    assert count_of(caplog, "job.recovered") == 1


def test_a_worker_in_whose_every_slot_storage_hangs_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    stalls = Stalls(at_work(3, progressed=61), stall=60, slots=3)
    stalls.check()
    stalls.check()

    assert count_of(caplog, "worker.stuck") == 1


async def test_a_job_that_is_done_and_waits_for_postgresql_does_not_stand_still(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = a_job()
    engine = Closed(job)
    runner = a_runner(engine, MemoryDriver(), slots=1)
    answer = asyncio.create_task(runner.run(job.dispatch))
    await until(lambda: engine.asked > 0)
    lease = runner.running[job.id].grant.lease
    lease.progressed_at -= 1000
    Stalls(runner.running, stall=60, slots=1).check()
    await Heartbeat(engine, runner.running, lease=LEASE, stall=60).beat()
    renewed = engine.renewed
    engine.open = True
    await answer

    assert not lease.stalled
    assert renewed == [job.id]
    assert (count_of(caplog, "job.stalled"), count_of(caplog, "worker.stuck")) == (0, 0)
    assert isinstance(engine.settled[0], Succeeded)


class Closed(FakeJobEngine):
    """A job book that takes no outcome before it is opened."""

    open = False
    asked = 0
    renewed: list[UUID] | None = None

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        self.asked += 1
        if not self.open:
            raise DatabaseUnavailable
        return await super().settle(job, outcome)

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        self.renewed = [*job_ids]
        return await super().renew(job_ids, progress)


async def test_a_job_that_hangs_here_is_left_to_others_until_it_moves() -> None:
    job = a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, MemoryDriver())
    hung = Running(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), time.monotonic() + 60))
    hung.grant.lease.stalled = True
    runner.running[job.id] = hung
    await runner.run(job.dispatch)
    assert engine.claims == []
    del runner.running[job.id]
    await runner.run(job.dispatch)

    assert isinstance(engine.settled[0], Succeeded)
