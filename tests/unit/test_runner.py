"""One job as a sentence: claim, perform, settle; against a job book, a storage and a Redis in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import structlog
from sqlalchemy.exc import DBAPIError

from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import Claim
from domain.jobs.model import Dispatch, Job
from domain.jobs.outcomes import Outcome, Released, Succeeded
from domain.jobs.states import JobStatus
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant, StopReason
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import (
    MIB,
    Crashing,
    FakeJobEngine,
    Untouchable,
    a_job,
    a_runner,
    closed_gate,
    fake_redis,
    faulty,
    size_of,
    until,
)
from worker import runner as runner_module


class TestClaim:
    async def test_a_ring_that_claims_nothing_does_nothing(self) -> None:
        job = a_job()
        old = job.dispatch
        job.epoch = 1
        engine = FakeJobEngine(job)
        await a_runner(engine, Untouchable()).handle(old)

        assert (engine.claims, engine.settled) == ([old], [])

    async def test_without_postgresql_the_ring_is_left_for_later(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        engine.away = 1
        await a_runner(engine, Untouchable()).handle(job.dispatch)

        assert (engine.claims, engine.settled, job.status) == ([], [], "queued")

    async def test_a_worker_that_closes_takes_nothing(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, Untouchable())
        await runner.close()
        await runner.handle(job.dispatch)

        assert (engine.claims, job.status) == ([], "queued")

    async def test_what_waits_for_a_slot_when_the_worker_closes_is_handed_back(self, tmp_path: Path) -> None:
        first, second = a_job(), a_job()
        engine = FakeJobEngine(first, second)
        runner = a_runner(engine, faulty(f"gate={closed_gate(tmp_path)}"), slots=1)
        answers = [asyncio.create_task(runner.handle(job.dispatch)) for job in (first, second)]
        await until(lambda: second.id in runner.running)
        await runner.close()
        await asyncio.gather(*answers)

        assert engine.settled == [Released(), Released()]
        assert second.status == "queued"

    async def test_what_finds_no_slot_goes_back_to_others(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.slots._LONGEST_WAIT_SECONDS", 0.01)
        gate = closed_gate(tmp_path)
        first, second = a_job(), a_job()
        engine = FakeJobEngine(first, second)
        runner = a_runner(engine, faulty(f"gate={gate}"), slots=1)
        at_work = asyncio.create_task(runner.handle(first.dispatch))
        await until(lambda: first.id in runner.running)
        await runner.handle(second.dispatch)

        assert engine.settled == [Released()]
        assert (second.status, second.epoch) == ("queued", 1)
        gate.unlink()
        await at_work

    async def test_when_slots_come_free_in_no_time_there_is_room_for_others_ahead(self) -> None:
        runner = a_runner(FakeJobEngine(), MemoryDriver(), slots=10)
        before = runner.capacity
        runner._slots._mean_interval = 0.0

        assert (before, runner.capacity) == (10, 20)

    async def test_the_message_is_given_up_as_soon_as_the_row_is_claimed(self, tmp_path: Path) -> None:
        job, redis = a_job(), fake_redis()
        queue = JobQueue(redis)
        runner = a_runner(FakeJobEngine(job), faulty(f"gate={closed_gate(tmp_path)}"), queue=queue)
        await queue.dispatch([job.dispatch])
        answer = asyncio.create_task(runner.handle(job.dispatch))
        async with asyncio.timeout(10):
            while await redis.keys(f"*{job.id}*"):
                await asyncio.sleep(0)

        assert job.id in runner.running
        await runner.close()
        await answer

    async def test_never_more_than_its_slots_are_at_work(self) -> None:
        jobs = [a_job() for _ in range(10)]
        engine, driver = FakeJobEngine(*jobs), Crowded()
        runner = a_runner(engine, driver, slots=3)
        await asyncio.gather(*(runner.handle(job.dispatch) for job in jobs))

        assert driver.most == 3
        assert len(engine.settled) == 10


class Crowded(MemoryDriver):
    """Counts how many are at work on it."""

    now = most = 0

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(10):
            await asyncio.sleep(0)
        self.now -= 1
        return await super().create(volume_id, size, grant)


class TestShuttingDown:
    async def test_a_job_is_handed_back(self, tmp_path: Path) -> None:
        job, driver = a_job(), faulty(f"gate={closed_gate(tmp_path)}")
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: job.id in runner.running)
        await runner.close()
        await answer

        assert engine.settled == [Released()]
        assert await size_of(driver, job) is None

    async def test_a_cancelled_answer_comes_back_only_when_the_storage_work_has_stopped(self) -> None:
        job, driver = a_job(), Stubborn()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: len(driver.doors) == 1)
        for _ in range(3):  # arq cancels once, an impatient loop again
            answer.cancel()
            await asyncio.sleep(0)
        assert (answer.done(), engine.settled) == (False, [])
        driver.doors[0].set()
        await answer

        assert engine.settled == [Released()]
        assert runner.running == {}

    async def test_a_claim_that_comes_through_while_closing_is_handed_back(self) -> None:
        job = a_job()
        engine = SlowForeman(job)
        driver = MemoryDriver()
        runner = a_runner(engine, driver)
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await engine.asked.wait()
        runner.release_all()
        engine.go_on.set()
        await answer

        assert engine.settled == [Released()]
        assert await size_of(driver, job) is None

    async def test_work_that_is_done_before_it_hears_of_the_end_is_done(self) -> None:
        job, driver = a_job(), Stubborn(obeys=False)
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: len(driver.doors) == 1)
        runner.release_all()
        driver.doors[0].set()
        await answer

        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_draining_waits_for_what_is_at_work(self, tmp_path: Path) -> None:
        gate, job = closed_gate(tmp_path), a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, faulty(f"gate={gate}"))
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: job.id in runner.running)
        drained = asyncio.create_task(runner.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        gate.unlink()
        await drained

        assert len(engine.settled) == 1
        await answer


class TestSettling:
    async def test_an_outcome_is_written_down_however_long_postgresql_is_away(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, Outage(engine))
        await runner.handle(job.dispatch)

        assert (engine.away, len(engine.settled), job.status) == (0, 1, "succeeded")

    async def test_whoever_hears_no_answer_to_the_first_settlement_does_not_call_the_job_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = Speechless(job)
        with structlog.testing.capture_logs() as logs:
            await a_runner(engine, MemoryDriver()).handle(job.dispatch)

        assert job.status is JobStatus.SUCCEEDED
        assert [line["event"] for line in logs] == ["job.started", "job.settled_or_superseded"]

    async def test_a_job_counts_as_at_work_until_it_is_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0.001)
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, Outage(engine, calls=10**9))
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: 0 < engine.away < 10**9)
        assert job.id in runner.running  # so its lease is renewed
        engine.away = 0
        await answer

        assert runner.running == {}

    async def test_a_worker_that_closes_does_not_wait_for_postgresql(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, Outage(engine, calls=10**9))
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: 0 < engine.away < 10**9)
        async with asyncio.timeout(5):
            await runner.close()
            await answer

        assert (engine.settled, job.status) == ([], "running")  # its lease runs out, and somebody finds the work done

    async def test_a_worker_that_closes_tries_a_few_times_more_for_a_row_that_others_have_locked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = Locked(job)
        runner = a_runner(engine, MemoryDriver())
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: engine.tries > 20)
        await runner.close()
        await answer
        other = a_job()
        engine = Locked(other, until=5)
        driver = Stopping()
        runner = a_runner(engine, driver)
        driver.stop = runner.release_all
        await runner.handle(other.dispatch)

        assert (job.status, other.status, engine.tries) == ("running", "succeeded", 5)

    async def test_a_lost_job_that_comes_back_keeps_its_new_entry(self) -> None:
        job, driver = a_job(), Stubborn()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        lost = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: len(driver.doors) == 1)
        earlier = runner.running[job.id].grant
        again = asyncio.create_task(runner.handle(engine.requeue(job.id)))
        await until(lambda: len(driver.doors) == 2)
        assert earlier.lease.stop_reason is StopReason.LEASE_LOST
        driver.doors[0].set()
        await lost

        assert runner.running[job.id].job.epoch == 1
        driver.doors[1].set()
        await again
        assert runner.running == {}
        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_every_outcome_leaves_nothing_at_work(self) -> None:
        for driver in (MemoryDriver(), Crashing(), faulty("fail=*:storage-full"), faulty("fail=*:fence-refused")):
            job = a_job()
            runner = a_runner(FakeJobEngine(job), driver)
            await runner.handle(job.dispatch)

            assert runner.running == {}


class Stubborn(MemoryDriver):
    """Works behind a door for each call, and looks at its grant only when it comes out, if it ``obeys`` at all."""

    def __init__(self, *, obeys: bool = True) -> None:
        super().__init__()
        self.doors: list[asyncio.Event] = []
        self._obeys = obeys

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        self.doors.append(asyncio.Event())
        await self.doors[-1].wait()
        if self._obeys:
            return await super().create(volume_id, size, grant)
        return size


class Outage(MemoryDriver):
    """PostgreSQL goes away while this storage is at work."""

    def __init__(self, engine: FakeJobEngine, calls: int = 3) -> None:
        super().__init__()
        self._engine = engine
        self._calls = calls

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        self._engine.away = self._calls
        return await super().create(volume_id, size, grant)


class Locked(FakeJobEngine):
    """Cannot settle before the last of so many tries, because somebody has locked the row."""

    def __init__(self, job: Job, until: int = 10**9) -> None:
        super().__init__(job)
        self.tries = 0
        self._until = until

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        self.tries += 1
        if self.tries < self._until:
            raise DatabaseUnavailable from DBAPIError(None, None, LockTimeout())
        return await super().settle(job, outcome)


class LockTimeout(Exception):
    """As asyncpg has it."""

    sqlstate = "55P03"


class Stopping(MemoryDriver):
    """The worker is told to stop just when the work is done."""

    stop: Callable[[], None]

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        size = await super().create(volume_id, size, grant)
        self.stop()
        return size


class Speechless(FakeJobEngine):
    """Settles, and the answer is lost the first time."""

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        if await super().settle(job, outcome):
            raise DatabaseUnavailable
        return False


class SlowForeman(FakeJobEngine):
    """Claims, and lets its answer wait."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__(*jobs)
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def claim(self, dispatch: Dispatch) -> Claim | None:
        claim = await super().claim(dispatch)
        self.asked.set()
        await self.go_on.wait()
        return claim
