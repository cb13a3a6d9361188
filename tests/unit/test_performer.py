"""The outcomes of one attempt, with a job engine and storage in memory."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from domain.bulk.requests import Selection
from domain.jobs.attempt import WORKER_LOST, Cancelled, Failed, FenceBehind, RetryIn, Succeeded
from domain.jobs.model import Job
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.storage.context import Fence, Grant, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import PermanentStorageError
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import (
    MIB,
    BuggyDriver,
    FakeJobEngine,
    UntouchableDriver,
    a_job,
    a_runner,
    closed_gate,
    faulty,
    size_of,
    until,
)


async def run_once(job: Job, driver: StorageDriver) -> FakeJobEngine:
    """Handle the job's message once, and return the engine that was called."""
    engine = FakeJobEngine(job)
    await a_runner(engine, driver).handle(job.message)
    return engine


def a_bulk_job() -> Job:
    """Return a bulk job that has to be planned, at its last attempt."""
    job = a_job("bulk.expand", max_attempts=1, volume_id=None, backend=None)
    job.params |= {"selection": Selection().to_json()}
    return job


class UnsealableDriver(MemoryDriver):
    """Storage that fails, and on which sealing raises an unexpected error."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        raise PermanentStorageError

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        raise KeyError("unexpected")


async def test_missing_connection_costs_no_attempt_even_at_the_last_one() -> None:
    engine = await run_once(a_bulk_job(), MemoryDriver())  # its database cannot be reached
    (outcome,) = engine.settled

    assert isinstance(outcome, RetryIn)
    assert (outcome.error["code"], outcome.free) == ("database-unavailable", True)


class TestOutcomes:
    async def test_successful_work_succeeds(self) -> None:
        job, driver = a_job(size=5 * MIB), MemoryDriver()
        engine = await run_once(job, driver)

        assert engine.settled == [Succeeded({"volume_id": str(job.volume_id), "size": 5 * MIB})]
        assert await size_of(driver, job) == 5 * MIB

    async def test_transient_failures_are_retried_with_growing_delays(self) -> None:
        job = a_job(max_attempts=4)
        engine = FakeJobEngine(job)
        runner = a_runner(engine, faulty("fail=create:storage-unavailable"))
        for _ in range(3):
            await runner.handle(job.message)
        delays = [outcome.delay for outcome in engine.settled if isinstance(outcome, RetryIn) and not outcome.free]

        assert [0.5 * 2**n <= delay <= 1.5 * 2**n for n, delay in enumerate(delays)] == [True] * 3

    async def test_job_that_fails_its_last_attempt_fails_with_the_state_found(self) -> None:
        job = a_job(max_attempts=1)
        engine = await run_once(job, faulty("fail_after=create:storage-unavailable"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error["code"] == "storage-unavailable"
        assert outcome.found == {"volume_id": str(job.volume_id), "size": MIB}

    async def test_permanent_failure_fails_the_job_at_once(self) -> None:
        job = a_job()
        engine = await run_once(job, faulty("fail=create:storage-full"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error["code"] == "storage-full"
        assert outcome.found == {"volume_id": str(job.volume_id)}

    async def test_busy_storage_costs_no_attempt_even_at_the_last_one(self) -> None:
        engine = await run_once(a_job(max_attempts=1), faulty("fail=create:storage-busy"))
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.free
        assert outcome.error["code"] == "storage-busy"

    async def test_bug_is_retried_and_its_error_has_no_internal_details(self) -> None:
        engine = await run_once(a_job(), BuggyDriver())
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.error == {"code": "internal", "detail": "Something went wrong."}

    async def test_refused_attempt_changes_nothing_and_names_the_fence_that_is_stored(self) -> None:
        job, driver = a_job("volume.expand", size=2 * MIB), MemoryDriver()
        assert job.volume_id is not None
        await driver.create(job.volume_id, MIB, Grant(job.id, Fence(9, 0), 1.0, clock=lambda: 0.0))
        engine = await run_once(job, driver)

        (outcome,) = engine.settled
        assert isinstance(outcome, FenceBehind)
        assert outcome.stored == Fence(9, 0)
        assert await size_of(driver, job) == MIB

    async def test_attempt_refused_by_a_fence_that_is_not_told_is_superseded(self) -> None:
        job = a_job()
        engine = await run_once(job, faulty("fail=create:fence-refused"))

        assert (engine.settled, job.status) == ([], "running")

    @pytest.mark.parametrize("columns", [{}, {"cancel_requested_at": "now"}], ids=["work", "cancellation"])
    async def test_backend_of_other_workers_is_left_to_them_without_an_attempt(self, columns: dict[str, Any]) -> None:
        """The volume must be sealed before it is released, and only they can do that."""
        engine = await run_once(a_job(backend="elsewhere", max_attempts=1, **columns), MemoryDriver())
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert (outcome.error["code"], outcome.free) == ("backend-unavailable", True)

    @pytest.mark.parametrize("error", [None, {"code": "storage-full", "detail": "Full."}])
    async def test_job_beyond_its_attempts_fails_without_any_work(self, error: dict[str, str] | None) -> None:
        engine = await run_once(a_job(attempt=3, max_attempts=3, error=error), UntouchableDriver())
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert outcome.error == (error or WORKER_LOST)
        assert outcome.found is not None


class TestSealing:
    async def test_failing_a_job_shuts_earlier_attempts_out(self) -> None:
        job, driver = a_job(attempt=3, max_attempts=3, epoch=5), MemoryDriver()
        await run_once(job, driver)
        assert job.volume_id is not None

        assert driver._fences[job.volume_id] == Fence(1, 5)

    async def test_seal_on_busy_storage_is_retried(self) -> None:
        engine = await run_once(a_job(), faulty("fail=create:storage-full,seal:storage-busy"))
        (outcome,) = engine.settled

        assert isinstance(outcome, RetryIn)
        assert outcome.free

    async def test_attempt_superseded_while_sealing_changes_nothing(self) -> None:
        engine = await run_once(a_job(), faulty("fail=create:storage-full,seal:fence-refused"))

        assert engine.settled == []

    async def test_job_fails_with_unknown_state_if_storage_denies_the_seal(self) -> None:
        engine = await run_once(a_job(), faulty("fail=create:storage-full,seal:storage-denied"))
        (outcome,) = engine.settled

        assert isinstance(outcome, Failed)
        assert (outcome.error["code"], outcome.found) == ("storage-full", None)

    async def test_seal_with_an_unexpected_error_is_retried_but_not_forever(self) -> None:
        first, last = a_job(), a_job()
        last.attempt = last.max_attempts + EXTRA_CLAIMS - 1

        assert isinstance((await run_once(first, UnsealableDriver())).settled[0], RetryIn)
        assert (await run_once(last, UnsealableDriver())).settled == [Failed(WORKER_LOST, None)]


class TestCancellation:
    async def test_job_cancelled_before_its_claim_is_sealed_and_not_started(self) -> None:
        job = a_job(cancel_requested_at="now")
        engine = await run_once(job, UntouchableDriver())

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id)})]

    async def test_cancelled_job_reports_what_an_earlier_attempt_left(self) -> None:
        job, driver = a_job(cancel_requested_at="now"), UntouchableDriver()
        assert job.volume_id is not None
        await MemoryDriver.create(driver, job.volume_id, MIB, Grant(job.id, Fence(1, 0), 1.0, clock=lambda: 0.0))
        engine = await run_once(job, driver)

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id), "size": MIB})]

    async def test_job_cancelled_during_its_work_ends_before_it_publishes(self, tmp_path: Path) -> None:
        job, driver = a_job(), faulty(f"gate={closed_gate(tmp_path)}")
        engine = FakeJobEngine(job)
        runner = a_runner(engine, driver)
        handling = asyncio.create_task(runner.handle(job.message))
        await until(lambda: job.id in runner.running)
        runner.running[job.id].grant.stop(StopReason.CANCELLED)
        await handling

        assert engine.settled == [Cancelled({"volume_id": str(job.volume_id)})]
        assert await size_of(driver, job) is None
