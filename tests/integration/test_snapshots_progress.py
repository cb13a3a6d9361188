"""The progress of a copy in the job's row: stored when the lease is renewed, and complete in the end."""

from uuid import uuid4

import pytest

from domain.jobs.attempt import ClaimedJob, RetryIn, Succeeded
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job
from domain.jobs.store.leases import Progress
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, a_volume, an_engine, row
from tests.integration.snapshot_builders import claimed, copied


@pytest.fixture
async def running(services: Services) -> tuple[JobEngine, ClaimedJob]:
    """A claimed job that takes a snapshot, and the engine of its worker."""
    volume = await a_volume(services)
    return await claimed(services, await services.snapshots.request_take(volume.id, "first"))


def progress(job: Job) -> tuple[int | None, ...]:
    return (job.total, job.succeeded, job.failed, job.skipped)


async def test_progress_is_unknown_at_first(services: Services, running: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = running
    before = await row(services, job.id)
    await engine.renew([job.id])
    found = await row(services, job.id)

    assert progress(found) == (None, None, None, None)
    assert found.version == before.version


async def test_renewal_stores_progress(services: Services, running: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = running
    before = await row(services, job.id)
    await engine.renew([job.id], {job.id: Progress(3, 10)})
    found = await row(services, job.id)

    assert progress(found) == (10, 3, 0, 0)
    assert found.version == before.version + 1, "the ETag has moved"


async def test_only_changed_progress_increments_the_version(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = running
    before = await row(services, job.id)
    for done in (3, 3, 3, 7):
        await engine.renew([job.id], {job.id: Progress(done, 10)})
    await engine.renew([job.id])
    found = await row(services, job.id)

    assert progress(found) == (10, 7, 0, 0)
    assert found.version == before.version + 2


async def test_job_without_progress_is_renewed_in_the_same_batch(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = running
    claim = await engine.claim((await a_queued_expand(services)).message)
    assert claim is not None
    before = await row(services, claim.job.id)
    renewed = await engine.renew([job.id, claim.job.id], {job.id: Progress(1, 2)})
    found = await row(services, claim.job.id)

    assert {renewal.job_id for renewal in renewed.renewals} == {job.id, claim.job.id}
    assert (progress(found), found.version) == ((None,) * 4, before.version)


async def test_worker_without_the_job_stores_no_progress(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    _, job = running
    renewed = await an_engine(services).renew([job.id, uuid4()], {job.id: Progress(9, 10)})

    assert list(renewed.renewals) == []
    assert progress(await row(services, job.id)) == (None,) * 4


@pytest.mark.parametrize(
    ("reported", "copied_bytes", "expected"),
    [
        (None, 10, (10, 10, 0, 0)),
        (Progress(3, 10), 10, (10, 10, 0, 0)),
        (Progress(3, 10), None, (10, 10, 0, 0)),
        (Progress(3, 10), 12, (12, 12, 0, 0)),
        (None, None, (None,) * 4),
    ],
    ids=["too short to be reported", "reported", "copied by an earlier attempt", "grown meanwhile", "nothing to copy"],
)
async def test_settled_job_has_full_progress(
    services: Services,
    running: tuple[JobEngine, ClaimedJob],
    reported: Progress | None,
    copied_bytes: int | None,
    expected: tuple[int | None, ...],
) -> None:
    engine, job = running
    await engine.renew([job.id], {job.id: reported} if reported else {})
    await engine.settle(job, copied(job, copied_bytes))

    assert progress(await row(services, job.id)) == expected


async def test_failed_attempt_leaves_its_last_progress(
    services: Services, running: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = running
    await engine.renew([job.id], {job.id: Progress(3, 10)})
    await engine.settle(job, RetryIn(0, {}))

    assert progress(await row(services, job.id)) == (10, 3, 0, 0)


async def test_jobs_that_copy_nothing_have_no_progress(services: Services) -> None:
    engine, job = await claimed(services, await a_queued_expand(services))
    await engine.settle(job, Succeeded({"volume_id": str(job.volume_id)}))

    assert progress(await row(services, job.id)) == (None,) * 4
