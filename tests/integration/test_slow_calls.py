"""The slow call that a job waits for: in its row while the attempt runs, and gone when the attempt has ended."""

from datetime import UTC, datetime, timedelta

import pytest

from domain.jobs.attempt import ClaimedJob, RetryIn, Succeeded
from domain.jobs.engine import JobEngine
from domain.jobs.store.leases import Progress, SlowCall
from domain.services import Services
from tests.integration.job_builders import MIB, a_queued_expand, an_engine, row, run_out

REFLINK = Progress(None, None, SlowCall("reflink", 200, 1800))


@pytest.fixture
async def running(services: Services) -> tuple[JobEngine, ClaimedJob]:
    """A claimed job and the engine of its worker."""
    job, engine = await a_queued_expand(services), an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    return engine, claim.job


async def test_renewal_shows_a_slow_call_once_and_keeps_its_start(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = running
    before = await row(services, job.id)
    await engine.renew([job.id], {job.id: REFLINK})
    first = await row(services, job.id)
    await engine.renew([job.id], {job.id: Progress(None, None, SlowCall("reflink", 205, 1800))})
    second = await row(services, job.id)

    assert first.waiting_for is not None
    assert (first.waiting_for["call"], first.waiting_for["limit_seconds"]) == ("reflink", 1800)
    since = datetime.fromisoformat(first.waiting_for["since"])
    assert timedelta(seconds=199) < datetime.now(UTC) - since < timedelta(seconds=260)
    assert second.waiting_for == first.waiting_for
    assert (first.version, second.version) == (before.version + 1,) * 2


async def test_renewal_without_a_slow_call_removes_the_one_before(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = running
    await engine.renew([job.id], {job.id: REFLINK})
    before = await row(services, job.id)
    await engine.renew([job.id])
    found = await row(services, job.id)

    assert (found.waiting_for, found.version) == (None, before.version + 1)


@pytest.mark.parametrize("outcome", [Succeeded({"size": 2 * MIB}), RetryIn(1.0, {"code": "c", "detail": "d"})])
async def test_settled_attempt_waits_for_nothing(
    services: Services, running: tuple[JobEngine, ClaimedJob], outcome: Succeeded | RetryIn
) -> None:
    engine, job = running
    await engine.renew([job.id], {job.id: REFLINK})
    await engine.settle(job, outcome)

    assert (await row(services, job.id)).waiting_for is None


async def test_rescued_job_waits_for_nothing(services: Services, running: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = running
    await engine.renew([job.id], {job.id: REFLINK})
    await run_out(services, job.id)
    await engine.maintenance.rescue()
    found = await row(services, job.id)

    assert (found.status, found.waiting_for) == ("queued", None)
