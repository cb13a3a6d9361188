"""A stalled job is marked and logged once, is not claimed here again, and its recovery is logged."""

import asyncio
import time
from collections.abc import Collection, Mapping
from uuid import UUID

import pytest

from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Outcome, Succeeded
from domain.jobs.engine import NO_PROGRESS, Renewed
from domain.jobs.store.leases import Progress
from domain.storage.context import Fence, Grant
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import LEASE, STALL, FakeJobEngine, a_job, a_runner, until
from worker.heartbeat import Heartbeat, StallDetector
from worker.runner import Execution


def running_jobs(count: int, *, seconds_since_progress: float) -> dict[UUID, Execution]:
    running = {}
    for _ in range(count):
        job = a_job()
        running[job.id] = Execution(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), time.monotonic() + 60))
        running[job.id].grant.state.progressed_at -= seconds_since_progress
    return running


def count_of(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(f"'{event}'" in record.getMessage() for record in caplog.records)


def test_stalled_jobs_are_marked_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stalled, active = running_jobs(2, seconds_since_progress=61), running_jobs(3, seconds_since_progress=59)
    detector = StallDetector(stalled | active, stall=STALL, slots=10)
    detector.check()
    detector.check()

    assert all(run.grant.state.stalled_at_last_check for run in stalled.values())
    assert not any(run.grant.state.stalled_at_last_check for run in active.values())
    assert (count_of(caplog, "job.stalled"), count_of(caplog, "worker.stuck")) == (2, 0)
    assert all(str(run.job.volume_id) in caplog.text for run in stalled.values())


def test_recovered_job_is_logged_and_no_longer_marked(caplog: pytest.LogCaptureFixture) -> None:
    running = running_jobs(1, seconds_since_progress=61)
    detector = StallDetector(running, stall=STALL, slots=10)
    detector.check()
    (run,) = running.values()
    run.grant.check()
    detector.check()

    assert not run.grant.state.stalled_at_last_check
    assert count_of(caplog, "job.recovered") == 1


def test_job_in_a_blocking_call_is_logged_once_and_not_marked(caplog: pytest.LogCaptureFixture) -> None:
    running = running_jobs(1, seconds_since_progress=61)
    (run,) = running.values()
    detector = StallDetector(running, stall=STALL, slots=1)
    with run.grant.blocking_call("reflink"):
        detector.check()
        detector.check()

    assert not run.grant.state.stalled_at_last_check
    assert (count_of(caplog, "job.slow_call"), count_of(caplog, "job.stalled")) == (1, 0)
    assert "reflink" in caplog.text
    assert str(run.job.volume_id) in caplog.text


def test_worker_with_a_stalled_job_in_every_slot_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    detector = StallDetector(running_jobs(3, seconds_since_progress=61), stall=STALL, slots=3)
    detector.check()
    detector.check()

    assert count_of(caplog, "worker.stuck") == 1


async def test_job_that_waits_to_be_settled_is_not_stalled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = a_job()
    engine = UnavailableEngine(job)
    runner = a_runner(engine, MemoryDriver(), slots=1)
    handling = asyncio.create_task(runner.process(job.message))
    await until(lambda: engine.settle_calls > 0)
    lease = runner.running[job.id].grant.state
    lease.progressed_at -= 1000
    StallDetector(runner.running, stall=STALL, slots=1).check()
    await Heartbeat(engine, runner.running, lease=LEASE, stall=STALL).beat()
    renewed = engine.renewed
    engine.available = True
    await handling

    assert not lease.stalled_at_last_check
    assert renewed == [job.id]
    assert (count_of(caplog, "job.stalled"), count_of(caplog, "worker.stuck")) == (0, 0)
    assert isinstance(engine.settled[0], Succeeded)


class UnavailableEngine(FakeJobEngine):
    """An engine that settles nothing before it is made available."""

    available = False
    settle_calls = 0
    renewed: list[UUID] | None = None

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        self.settle_calls += 1
        if not self.available:
            raise DatabaseUnavailable
        return await super().settle(job, outcome)

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        self.renewed = [*job_ids]
        return await super().renew(job_ids, progress)


async def test_job_that_is_stalled_here_is_not_claimed_here() -> None:
    job = a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, MemoryDriver())
    stalled = Execution(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), time.monotonic() + 60))
    stalled.grant.state.stalled_at_last_check = True
    runner.running[job.id] = stalled
    await runner.process(job.message)
    assert engine.claims == []
    del runner.running[job.id]
    await runner.process(job.message)

    assert isinstance(engine.settled[0], Succeeded)
