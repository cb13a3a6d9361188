"""Settling an attempt: its outcome and its effect are recorded in one transaction, and only once."""

from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.attempt import Cancelled, ClaimedJob, Failed, Outcome, Released, RetryIn, Succeeded, Superseded
from domain.jobs.engine import JobEngine
from domain.jobs.kinds import SucceededJobs
from domain.jobs.model import JobMessage
from domain.jobs.states import JobStatus
from domain.jobs.store.leases import LeaseRepository, Settlement
from domain.operation_handler import OperationHandler
from domain.operations import VolumeState
from domain.services import Services
from domain.volumes.repository import Release, VolumeRepository
from tests.integration.job_builders import (
    MIB,
    a_queued_expand,
    an_engine,
    everything,
    row,
    run_out,
    set_job,
    sql,
    volume_row,
)
from tests.support.bulk import add_volumes

ERROR = {"code": "storage-full", "detail": "Full."}


async def a_running_expand(services: Services) -> tuple[JobEngine, ClaimedJob]:
    """Request an expansion from 1 to 2 MiB and claim it."""
    engine = an_engine(services)
    claim = await engine.claim((await a_queued_expand(services)).message)
    assert claim is not None
    return engine, claim.job


def expanded(job: ClaimedJob) -> Succeeded:
    return Succeeded({"volume_id": str(job.volume_id), "size": 2 * MIB})


async def test_success_ends_the_job_and_releases_the_volume__new_size(services: Services) -> None:
    engine, job = await a_running_expand(services)
    assert await engine.settle(job, expanded(job))
    found, volume = await row(services, job.id), await volume_row(services, job.volume_id)

    assert (found.status, found.result) == ("succeeded", {"volume_id": str(job.volume_id), "size": 2 * MIB})
    assert (found.lease_expires_at, found.finished_at is not None) == (None, True)
    assert (volume["state"], volume["size"], volume["job_id"]) == ("available", 2 * MIB, None)


async def test_settling_is_idempotent(services: Services) -> None:
    """If the reply to the COMMIT is lost, the worker settles again."""
    engine, job = await a_running_expand(services)
    await engine.settle(job, expanded(job))
    settled_once = await everything(services)
    await engine.settle(job, expanded(job))

    assert await everything(services) == settled_once
    assert (await volume_row(services, job.volume_id))["version"] == 3


async def test_release_of_volumes_leaves_their_indexes_alone(services: Services) -> None:
    """The release is a heap-only update, because the pages of volumes have room for one more version of each row."""
    count, job_id = 200, uuid4()
    volume_ids = await add_volumes(services, count, backend="memory", state=VolumeState.EXPANDING, job_id=job_id)
    releases = [Release(volume_id, job_id, 2 * MIB) for volume_id in volume_ids]
    async with services.database.transaction() as session:
        await VolumeRepository(session).release(releases, VolumeState.AVAILABLE)
        query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'volumes'"
        updated = (await session.execute(text(query))).one()

    assert updated == (count, count)


async def test_job_is_unchanged_if_its_effect_cannot_be_recorded(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, job = await a_running_expand(services)
    before = await everything(services)

    record = OperationHandler.record

    async def fail_after_recording(self: OperationHandler, session: AsyncSession, succeeded: SucceededJobs) -> None:
        await record(self, session, succeeded)
        raise ValueError("on purpose")

    monkeypatch.setattr(OperationHandler, "record", fail_after_recording)
    with pytest.raises(ValueError, match="on purpose"):
        await engine.settle(job, expanded(job))

    assert await everything(services) == before


async def test_volume_held_by_another_job_is_never_changed(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await sql(services, "UPDATE volumes SET job_id = :other", other=uuid4())
    before = await everything(services)
    with pytest.raises(RuntimeError, match="not held by the jobs that end"):
        await engine.settle(job, expanded(job))

    assert await everything(services) == before


@pytest.mark.parametrize(
    "outcome",
    [Succeeded({"size": 2 * MIB}), RetryIn(0, ERROR), Failed(ERROR), Released(), Cancelled(), Superseded()],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_worker_that_lost_the_job_changes_nothing(services: Services, outcome: Outcome) -> None:
    engine, job = await a_running_expand(services)
    other = an_engine(services)
    as_claimed = await everything(services)
    assert not await other.settle(job, outcome)
    assert await everything(services) == as_claimed
    await run_out(services, job.id)
    await other.maintenance.rescue()
    rescued = await everything(services)

    assert not await engine.settle(job, outcome)
    assert await everything(services) == rescued


async def test_stale_epoch_settles_nothing_even_in_the_same_worker(services: Services) -> None:
    engine, old = await a_running_expand(services)
    await run_out(services, old.id)
    await engine.maintenance.rescue()
    assert await engine.claim((await row(services, old.id)).message) is not None
    before = await everything(services)

    assert not await engine.settle(old, expanded(old))
    assert await everything(services) == before


async def test_retry_gets_a_new_epoch_and_waits_for_its_delay(services: Services) -> None:
    engine, job = await a_running_expand(services)
    assert await engine.settle(job, RetryIn(100, ERROR))
    found = await row(services, job.id)
    ((delay,),) = await sql(services, "SELECT extract(epoch FROM run_at - now()) FROM jobs")

    assert (found.status, found.attempt, found.epoch, found.error) == ("queued", 1, 1, ERROR)
    assert (found.dispatched_at, found.lease_expires_at, found.finished_at) == (None, None, None)
    assert 90 < delay <= 100
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_retry_is_dispatched_once_its_delay_is_over(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await engine.settle(job, RetryIn(100, ERROR))
    assert await engine.maintenance.dispatch_due() == 0
    await set_job(services, job.id, "run_at = now()")

    assert (await engine.maintenance.dispatch_due(), await engine.maintenance.dispatch_due()) == (1, 0)


async def test_free_retry_gives_the_attempt_back(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await engine.settle(job, RetryIn(0, ERROR, free=True))
    found = await row(services, job.id)

    assert (found.status, found.attempt, found.epoch) == ("queued", 0, 1)


async def test_cancelled_job_skips_its_retry_delay(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await services.jobs.cancel(job.id)
    await engine.settle(job, RetryIn(100, ERROR))

    assert await engine.maintenance.dispatch_due() == 1


async def test_released_job_gets_its_attempt_back_and_is_dispatched_at_once(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await set_job(services, job.id, """error = '{"code": "earlier"}'""")
    await engine.settle(job, Released())
    found = await row(services, job.id)

    assert (found.status, found.attempt, found.epoch) == ("queued", 0, 1)
    assert await services.queue.missing([JobMessage(job.id, 1, "memory")]) == []


async def test_failed_job_stores_its_error_and_releases_the_volume(services: Services) -> None:
    engine, job = await a_running_expand(services)
    assert await engine.settle(job, Failed(ERROR, {"size": 3 * MIB}))
    found, volume = await row(services, job.id), await volume_row(services, job.volume_id)

    assert (found.status, found.error, found.finished_at is not None) == ("failed", ERROR, True)
    assert (volume["state"], volume["size"], volume["job_id"]) == ("available", 3 * MIB, None)


async def test_size_is_unchanged_if_the_storage_state_is_unknown(services: Services) -> None:
    engine, job = await a_running_expand(services)
    await engine.settle(job, Failed(ERROR))

    assert (await volume_row(services, job.volume_id))["size"] == MIB


async def test_cancelled_outcome_ends_the_job_as_cancelled(services: Services) -> None:
    engine, job = await a_running_expand(services)
    assert await engine.settle(job, Cancelled({"size": MIB}))
    volume = await volume_row(services, job.volume_id)

    assert (await row(services, job.id)).status == "cancelled"
    assert (volume["state"], volume["job_id"]) == ("available", None)


async def test_cancelled_job_keeps_the_delay_of_a_free_retry(
    services: Services,
) -> None:
    delayed = {}
    for free in (False, True):
        engine, job = await a_running_expand(services)
        await services.jobs.cancel(job.id)
        await engine.settle(job, RetryIn(100, ERROR, free=free))
        ((delayed[free],),) = await sql(services, "SELECT run_at > now() FROM jobs WHERE id = :id", id=job.id)

    assert delayed == {False: False, True: True}


async def test_many_attempts_are_settled_in_one_statement(services: Services) -> None:
    worker_id = uuid4()
    jobs = [await a_queued_expand(services) for _ in range(20)]
    async with services.database.transaction() as session:
        leases = LeaseRepository(session)
        await leases.claim(
            [job.message for job in jobs], worker_id=worker_id, kinds=("volume.expand",), backends=("memory",), lease=3
        )
        settlements = [
            Settlement(jobs[0].id, 0, JobStatus.QUEUED, error=ERROR, delay=5),
            Settlement(jobs[1].id, 7, JobStatus.FAILED, error=ERROR),
            *(Settlement(job.id, 0, JobStatus.SUCCEEDED, result={"n": n}) for n, job in enumerate(jobs[2:])),
        ]
        settled = await leases.settle(settlements, worker_id=worker_id, lock_timeout=1)

    assert settled == {job.id for job in jobs} - {jobs[1].id}
    assert await sql(services, "SELECT status, count(*) FROM jobs GROUP BY 1 ORDER BY 1") == [
        ("queued", 1),
        ("running", 1),
        ("succeeded", 18),
    ]
    assert [(await row(services, job.id)).result for job in jobs[2:4]] == [{"n": 0}, {"n": 1}]


async def test_each_change_of_a_job_increments_its_version(services: Services) -> None:
    engine, job = await a_running_expand(services)
    versions = [(await row(services, job.id)).version]
    await engine.settle(job, RetryIn(0, ERROR))
    versions.append((await row(services, job.id)).version)
    claim = await engine.claim((await row(services, job.id)).message)
    assert claim is not None
    versions.append((await row(services, job.id)).version)
    await engine.settle(claim.job, expanded(job))
    versions.append((await row(services, job.id)).version)

    assert versions == [2, 3, 4, 5]
