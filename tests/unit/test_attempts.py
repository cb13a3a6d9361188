"""What becomes of one attempt: done, tried again, given up, cancelled; against a job book and a storage in memory."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from domain.jobs.model import Job
from domain.jobs.outcomes import Cancelled, Failed, RetryIn, Succeeded
from domain.jobs.retry import WORKER_LOST
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.storage.context import Fence, Grant, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import PermanentStorageError
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import (
    MIB,
    Crashing,
    FakeJobEngine,
    Untouchable,
    a_job,
    a_runner,
    closed_gate,
    faulty,
    size_of,
    until,
)


async def answered(job: Job, driver: StorageDriver) -> FakeJobEngine:
    """Answer the job's ring once, and show what the foreman heard."""
    engine = FakeJobEngine(job)
    await a_runner(engine, driver).handle(job.dispatch)
    return engine


class Unsealable(MemoryDriver):
    """Fails, and cannot even be asked what is there."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        raise PermanentStorageError

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        raise KeyError("unforeseen")


class TestOutcomes:
    async def test_work_that_is_done(self) -> None:
        job, driver = a_job(size=5 * MIB), MemoryDriver()
        engine = await answered(job, driver)

        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": 5 * MIB})]
        assert await size_of(driver, job) == 5 * MIB

    async def test_a_failure_that_may_pass_is_tried_again_later_each_time(self) -> None:
        job = a_job(max_attempts=4)
        engine = FakeJobEngine(job)
        runner = a_runner(engine, faulty("fail=create:storage-unavailable"))
        for _ in range(3):
            await runner.handle(job.dispatch)
        delays = [outcome.delay for outcome in engine.settled if isinstance(outcome, RetryIn) and not outcome.free]

        assert [0.5 * 2**n <= delay <= 1.5 * 2**n for n, delay in enumerate(delays)] == [True] * 3

    async def test_what_fails_at_the_last_attempt_is_given_up_with_what_was_found(self) -> None:
        job = a_job(max_attempts=1)
        engine = await answered(job, faulty("fail_after=create:storage-unavailable"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error["code"] == "storage-unavailable"
        assert outcome.found == {"volume_id": str(job.volume_id), "size": MIB}

    async def test_a_failure_that_will_not_pass_is_given_up_at_once(self) -> None:
        job = a_job()
        engine = await answered(job, faulty("fail=create:storage-full"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error["code"] == "storage-full"
        assert outcome.found == {"volume_id": str(job.volume_id)}

    async def test_a_lock_in_the_way_costs_no_attempt_even_at_the_last_one(self) -> None:
        engine = await answered(a_job(max_attempts=1), faulty("fail=create:storage-busy"))
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.free
        assert outcome.error["code"] == "storage-busy"

    async def test_a_crash_is_tried_again_and_says_nothing_of_our_insides(self) -> None:
        engine = await answered(a_job(), Crashing())
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.error == {"code": "internal", "detail": "Something went wrong."}

    async def test_an_attempt_that_was_overtaken_changes_nothing(self) -> None:
        job, driver = a_job("volume.expand", size=2 * MIB), MemoryDriver()
        assert job.volume_id is not None
        await driver.create(job.volume_id, MIB, Grant(job.id, Fence(9, 0), 1.0, clock=lambda: 0.0))
        engine = await answered(job, driver)

        assert (engine.settled, job.status) == ([], "running")
        assert await size_of(driver, job) == MIB

    async def test_a_backend_that_is_configured_no_more_is_a_failure_like_any_other(self) -> None:
        engine = await answered(a_job(backend="gone", max_attempts=1), MemoryDriver())
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert (outcome.error["code"], outcome.found) == ("unknown-backend", None)

    @pytest.mark.parametrize("error", [None, {"code": "storage-full", "detail": "Full."}])
    async def test_beyond_its_attempts_a_job_is_given_up_without_any_work(self, error: dict[str, str] | None) -> None:
        engine = await answered(a_job(attempt=3, max_attempts=3, error=error), Untouchable())
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error == (error or WORKER_LOST)
        assert outcome.found is not None


class TestWaysOut:
    async def test_giving_up_shuts_earlier_attempts_out(self) -> None:
        job, driver = a_job(attempt=3, max_attempts=3, epoch=5), MemoryDriver()
        await answered(job, driver)
        assert job.volume_id is not None

        assert driver._fences[job.volume_id] == Fence(1, 5)

    async def test_when_a_lock_is_in_the_way_of_the_way_out_it_is_tried_again(self) -> None:
        engine = await answered(a_job(), faulty("fail=create:storage-full,seal:storage-busy"))
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.free

    async def test_whoever_was_overtaken_on_the_way_out_changes_nothing(self) -> None:
        engine = await answered(a_job(), faulty("fail=create:storage-full,seal:fence-refused"))

        assert engine.settled == []

    async def test_if_nobody_can_look_at_the_storage_nothing_is_known_of_it(self) -> None:
        engine = await answered(a_job(), faulty("fail=create:storage-full,seal:storage-denied"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert (outcome.error["code"], outcome.found) == ("storage-full", None)

    async def test_a_seal_that_fails_unforeseen_is_tried_again_but_not_for_ever(self) -> None:
        first, last = a_job(), a_job()
        last.attempt = last.max_attempts + EXTRA_CLAIMS - 1

        assert isinstance((await answered(first, Unsealable())).settled[0], RetryIn)
        assert (await answered(last, Unsealable())).settled == [Failed(WORKER_LOST, None)]


class TestCancelling:
    async def test_a_job_cancelled_before_its_claim_is_sealed_and_not_begun(self) -> None:
        job = a_job(cancel_requested_at="now")
        engine = await answered(job, Untouchable())

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id)})]

    async def test_a_cancelled_job_reports_what_an_earlier_attempt_left(self) -> None:
        job, driver = a_job(cancel_requested_at="now"), Untouchable()
        assert job.volume_id is not None
        await MemoryDriver.create(driver, job.volume_id, MIB, Grant(job.id, Fence(1, 0), 1.0, clock=lambda: 0.0))
        engine = await answered(job, driver)

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_a_job_cancelled_during_the_work_ends_before_it_publishes(self, tmp_path: Path) -> None:
        job, driver = a_job(), faulty(f"gate={closed_gate(tmp_path)}")
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        answer = asyncio.create_task(runner.handle(job.dispatch))
        await until(lambda: job.id in runner.running)
        runner.running[job.id].grant.stop(StopReason.CANCELLED)
        await answer

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id)})]
        assert await size_of(driver, job) is None

    async def test_a_cancelled_job_on_a_backend_that_is_gone_ends_all_the_same(self) -> None:
        engine = await answered(a_job(backend="gone", cancel_requested_at="now"), MemoryDriver())

        assert engine.settled == [Cancelled(None)]
