"""The runner claims, performs and settles a job, with a job engine, storage and Redis in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import structlog
from sqlalchemy.exc import DBAPIError

from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Outcome, Released, Succeeded
from domain.jobs.engine import Claim
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import JobStatus
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant, StopReason
from domain.storage.memory import MemoryDriver
from domain.tasks import cancel_and_wait
from tests.unit.worker_fakes import (
    MIB,
    BuggyDriver,
    FakeJobEngine,
    UntouchableDriver,
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
    async def test_message_of_an_old_epoch_does_nothing(self) -> None:
        job = a_job()
        outdated = job.message
        job.epoch = 1
        engine = FakeJobEngine(job)
        await a_runner(engine, UntouchableDriver()).handle(outdated)

        assert (engine.claims, engine.settled) == ([outdated], [])

    async def test_nothing_is_claimed_without_postgresql(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        engine.failing_calls = 1
        await a_runner(engine, UntouchableDriver()).handle(job.message)

        assert (engine.claims, engine.settled, job.status) == ([], [], "queued")

    async def test_closing_runner_claims_nothing(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, UntouchableDriver())
        await runner.close()
        await runner.handle(job.message)

        assert (engine.claims, job.status) == ([], "queued")

    async def test_job_waiting_for_a_slot_is_released_when_the_runner_closes(self, tmp_path: Path) -> None:
        first, second = a_job(), a_job()
        engine = FakeJobEngine(first, second)
        runner = a_runner(engine, faulty(f"gate={closed_gate(tmp_path)}"), slots=1)
        tasks = [asyncio.create_task(runner.handle(job.message)) for job in (first, second)]
        await until(lambda: second.id in runner.running)
        await runner.close()
        await asyncio.gather(*tasks)

        assert engine.settled == [Released(), Released()]
        assert second.status == "queued"

    async def test_job_that_finds_no_slot_is_released(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.slots._MAX_WAIT_SECONDS", 0.01)
        gate = closed_gate(tmp_path)
        first, second = a_job(), a_job()
        engine = FakeJobEngine(first, second)
        runner = a_runner(engine, faulty(f"gate={gate}"), slots=1)
        handling_first = asyncio.create_task(runner.handle(first.message))
        await until(lambda: first.id in runner.running)
        await runner.handle(second.message)

        assert engine.settled == [Released()]
        assert (second.status, second.epoch) == ("queued", 1)
        gate.unlink()
        await handling_first

    async def test_capacity_includes_jobs_ahead_while_slots_are_released_quickly(self) -> None:
        runner = a_runner(FakeJobEngine(), MemoryDriver(), slots=10)
        before = runner.load.capacity
        runner._slots._mean_interval = 0.0

        assert (before, runner.load.capacity) == (10, 10 + runner._slots.ahead)
        assert runner._slots.ahead > 0

    async def test_jobs_of_fetched_messages_run_although_one_message_is_outdated(self) -> None:
        jobs = [a_job() for _ in range(3)]
        messages = [job.message for job in jobs]
        jobs[1].epoch = 1
        engine = FakeJobEngine(*jobs)
        runner = a_runner(engine, MemoryDriver())
        runner.start(messages)
        await runner.drained()

        assert [job.status for job in jobs] == ["succeeded", "queued", "succeeded"]
        assert runner.load.capacity == 10

    async def test_claim_that_fails_is_logged_and_frees_its_capacity(self) -> None:
        jobs = [a_job() for _ in range(3)]
        engine = PoisonedEngine(*jobs)
        runner = a_runner(engine, MemoryDriver())
        with structlog.testing.capture_logs() as logs:
            runner.start([job.message for job in jobs])
            await runner.drained()

        assert [job.status for job in jobs] == ["queued", "succeeded", "succeeded"]
        failed = [(line["event"], line["job_id"]) for line in logs if line["log_level"] == "error"]
        assert failed == [("job.task_failed", str(jobs[0].id))]
        assert runner.load.capacity == 10

    @pytest.mark.parametrize(("seconds", "capacity"), [(3600, 7), (0, 10)])
    async def test_message_counts_as_load_for_a_while_after_its_claim_found_postgresql_unreachable(
        self, monkeypatch: pytest.MonkeyPatch, seconds: float, capacity: int
    ) -> None:
        monkeypatch.setattr("worker.runner._UNREACHABLE_SECONDS", seconds)
        jobs = [a_job() for _ in range(3)]
        engine = FakeJobEngine(*jobs)
        engine.failing_calls = 6  # three claims together, then each alone
        runner = a_runner(engine, MemoryDriver())
        with structlog.testing.capture_logs() as logs:
            runner.start([job.message for job in jobs])
            await (until(lambda: not engine.failing_calls) if seconds else runner.drained())

        assert ([line["event"] for line in logs], runner.load.capacity) == (["claim.postponed"] * 3, capacity)
        await cancel_and_wait(runner._tasks)

    async def test_claimed_row_without_a_fence_is_logged_and_frees_its_capacity(self) -> None:
        job = a_job()
        job.params = {}
        runner = a_runner(FakeJobEngine(job), MemoryDriver())
        with structlog.testing.capture_logs() as logs:
            runner.start([job.message])
            await runner.drained()

        assert [(line["event"], line["job_id"]) for line in logs] == [("job.task_failed", str(job.id))]
        assert (runner.load.capacity, runner.running) == (10, {})

    async def test_settlement_that_fails_is_logged_with_its_job(self) -> None:
        job = a_job()
        runner = a_runner(UnsettlingEngine(job), MemoryDriver())
        with structlog.testing.capture_logs() as logs:
            runner.start([job.message])
            await runner.drained()

        assert (logs[-1]["event"], logs[-1]["job_id"]) == ("job.task_failed", str(job.id))
        assert (runner.load.capacity, runner.running) == (10, {})

    async def test_message_is_deleted_as_soon_as_the_job_is_claimed(self, tmp_path: Path) -> None:
        job, redis = a_job(), fake_redis()
        queue = JobQueue(redis)
        runner = a_runner(FakeJobEngine(job), faulty(f"gate={closed_gate(tmp_path)}"), queue=queue)
        await queue.dispatch([job.message])
        handling = asyncio.create_task(runner.handle(job.message))
        async with asyncio.timeout(10):
            while await redis.keys(f"*{job.id}*"):
                await asyncio.sleep(0)

        assert job.id in runner.running
        await runner.close()
        await handling

    async def test_no_more_jobs_run_at_once_than_there_are_slots(self) -> None:
        jobs = [a_job() for _ in range(10)]
        engine, driver = FakeJobEngine(*jobs), ConcurrencyCounter()
        runner = a_runner(engine, driver, slots=3)
        await asyncio.gather(*(runner.handle(job.message) for job in jobs))

        assert driver.maximum == 3
        assert len(engine.settled) == 10


class ConcurrencyCounter(MemoryDriver):
    """Counts concurrent calls."""

    current = maximum = 0

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        self.current += 1
        self.maximum = max(self.maximum, self.current)
        for _ in range(10):
            await asyncio.sleep(0)
        self.current -= 1
        return await super().create(volume_id, size, grant)


class TestShutdown:
    async def test_running_job_is_released(self, tmp_path: Path) -> None:
        job, driver = a_job(), faulty(f"gate={closed_gate(tmp_path)}")
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: job.id in runner.running)
        await runner.close()
        await handling

        assert engine.settled == [Released()]
        assert await size_of(driver, job) is None

    async def test_cancelled_call_returns_only_after_the_storage_work_has_stopped(self) -> None:
        job, driver = a_job(), WaitingDriver()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: len(driver.waiting) == 1)
        for _ in range(3):  # arq cancels once, its event loop may cancel again
            handling.cancel()
            await asyncio.sleep(0)
        assert (handling.done(), engine.settled) == (False, [])
        driver.waiting[0].set()
        await handling

        assert engine.settled == [Released()]
        assert runner.running == {}

    async def test_job_claimed_while_closing_is_released(self) -> None:
        job = a_job()
        engine = SlowClaimEngine(job)
        driver = MemoryDriver()
        runner = a_runner(engine, driver)
        handling = asyncio.create_task(runner.handle(job.message))
        await engine.claimed.wait()
        runner.release_all()
        engine.may_return.set()
        await handling

        assert engine.settled == [Released()]
        assert await size_of(driver, job) is None

    async def test_work_that_ends_before_it_notices_the_shutdown_succeeds(self) -> None:
        job, driver = a_job(), WaitingDriver(checks_grant=False)
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: len(driver.waiting) == 1)
        runner.release_all()
        driver.waiting[0].set()
        await handling

        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_draining_waits_for_running_jobs(self, tmp_path: Path) -> None:
        gate, job = closed_gate(tmp_path), a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, faulty(f"gate={gate}"))
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: job.id in runner.running)
        drained = asyncio.create_task(runner.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        gate.unlink()
        await drained

        assert len(engine.settled) == 1
        await handling


class TestSettling:
    async def test_outcome_is_settled_after_an_outage_of_postgresql(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, OutageDriver(engine))
        await runner.handle(job.message)

        assert (engine.failing_calls, len(engine.settled), job.status) == (0, 1, "succeeded")

    async def test_job_is_not_logged_as_lost_if_the_reply_to_its_settlement_was_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = LostReplyEngine(job)
        with structlog.testing.capture_logs() as logs:
            await a_runner(engine, MemoryDriver()).handle(job.message)

        assert job.status is JobStatus.SUCCEEDED
        assert [line["event"] for line in logs] == ["job.started", "job.settled_or_superseded"]

    async def test_job_counts_as_running_until_it_is_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0.001)
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, OutageDriver(engine, calls=10**9))
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: 0 < engine.failing_calls < 10**9)
        assert job.id in runner.running  # so its lease is renewed
        engine.failing_calls = 0
        await handling

        assert runner.running == {}

    async def test_closing_runner_does_not_wait_for_postgresql(self) -> None:
        job = a_job()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, OutageDriver(engine, calls=10**9))
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: 0 < engine.failing_calls < 10**9)
        async with asyncio.timeout(5):
            await runner.close()
            await handling

        assert (engine.settled, job.status) == (
            [],
            "running",
        )  # its lease expires, and the next attempt finds the work done

    async def test_closing_runner_retries_a_locked_row_a_limited_number_of_times(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "_SETTLE_RETRY_SECONDS", 0)
        job = a_job()
        engine = LockedRowEngine(job)
        runner = a_runner(engine, MemoryDriver())
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: engine.tries > 20)
        await runner.close()
        await handling
        other = a_job()
        engine = LockedRowEngine(other, succeeds_at=5)
        driver = ClosingDriver()
        runner = a_runner(engine, driver)
        driver.close_runner = runner.release_all
        await runner.handle(other.message)

        assert (job.status, other.status, engine.tries) == ("running", "succeeded", 5)

    async def test_lost_job_that_is_claimed_again_stays_registered(self) -> None:
        job, driver = a_job(), WaitingDriver()
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        handling_lost = asyncio.create_task(runner.handle(job.message))
        await until(lambda: len(driver.waiting) == 1)
        earlier = runner.running[job.id].grant
        handling_again = asyncio.create_task(runner.handle(engine.requeue(job.id)))
        await until(lambda: len(driver.waiting) == 2)
        assert earlier.state.stop_reason is StopReason.LEASE_LOST
        driver.waiting[0].set()
        await handling_lost

        assert runner.running[job.id].job.epoch == 1
        driver.waiting[1].set()
        await handling_again
        assert runner.running == {}
        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_no_job_stays_registered_after_any_outcome(self) -> None:
        for driver in (MemoryDriver(), BuggyDriver(), faulty("fail=*:storage-full"), faulty("fail=*:fence-refused")):
            job = a_job()
            runner = a_runner(FakeJobEngine(job), driver)
            await runner.handle(job.message)

            assert runner.running == {}


class WaitingDriver(MemoryDriver):
    """Waits for an event in each call, and checks the grant only afterwards, if it ``checks_grant`` at all."""

    def __init__(self, *, checks_grant: bool = True) -> None:
        super().__init__()
        self.waiting: list[asyncio.Event] = []
        self._checks_grant = checks_grant

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        self.waiting.append(asyncio.Event())
        await self.waiting[-1].wait()
        if self._checks_grant:
            return await super().create(volume_id, size, grant)
        return size


class OutageDriver(MemoryDriver):
    """PostgreSQL becomes unavailable while this storage works."""

    def __init__(self, engine: FakeJobEngine, calls: int = 3) -> None:
        super().__init__()
        self._engine = engine
        self._calls = calls

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        self._engine.failing_calls = self._calls
        return await super().create(volume_id, size, grant)


class LockedRowEngine(FakeJobEngine):
    """Finds the row locked in every try before number ``succeeds_at``."""

    def __init__(self, job: Job, succeeds_at: int = 10**9) -> None:
        super().__init__(job)
        self.tries = 0
        self._succeeds_at = succeeds_at

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        self.tries += 1
        if self.tries < self._succeeds_at:
            raise DatabaseUnavailable from DBAPIError(None, None, LockTimeout())
        return await super().settle(job, outcome)


class LockTimeout(Exception):
    """A lock timeout with the SQLSTATE that asyncpg reports."""

    sqlstate = "55P03"


class ClosingDriver(MemoryDriver):
    """Has the runner closed just as the work ends."""

    close_runner: Callable[[], None]

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        size = await super().create(volume_id, size, grant)
        self.close_runner()
        return size


class LostReplyEngine(FakeJobEngine):
    """Settles, but the reply to the first call is lost."""

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        if await super().settle(job, outcome):
            raise DatabaseUnavailable
        return False


class PoisonedEngine(FakeJobEngine):
    """Fails as soon as it is to claim its first job."""

    async def claim(self, message: JobMessage) -> Claim | None:
        if message.job_id == next(iter(self.jobs)):
            raise ValueError("a bug")
        return await super().claim(message)


class UnsettlingEngine(FakeJobEngine):
    """Has a bug in every settlement."""

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        raise RuntimeError("broken")


class SlowClaimEngine(FakeJobEngine):
    """Claims, but returns only when it may."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__(*jobs)
        self.claimed = asyncio.Event()
        self.may_return = asyncio.Event()

    async def claim(self, message: JobMessage) -> Claim | None:
        claim = await super().claim(message)
        self.claimed.set()
        await self.may_return.wait()
        return claim
