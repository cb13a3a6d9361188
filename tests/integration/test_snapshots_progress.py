"""How far a copy is stands in the job's row: written down with the lease, and at the end all of it."""

from uuid import uuid4

import pytest

from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job
from domain.jobs.outcomes import RetryIn, Succeeded
from domain.jobs.store.leases import Progress
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, a_volume, an_engine, row
from tests.integration.snapshot_builders import claimed, copied


@pytest.fixture
async def at_work(services: Services) -> tuple[JobEngine, ClaimedJob]:
    """A snapshot that is being taken, by a worker that can be asked to say so."""
    volume = await a_volume(services)
    return await claimed(services, await services.snapshots.request_take(volume.id, "first"))


def progress(job: Job) -> tuple[int | None, ...]:
    return (job.total, job.succeeded, job.failed, job.skipped)


async def test_at_first_nobody_knows(services: Services, at_work: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = at_work
    before = await row(services, job.id)
    await engine.renew([job.id])
    found = await row(services, job.id)

    assert progress(found) == (None, None, None, None)
    assert found.version == before.version


async def test_a_renewal_writes_down_how_far_it_is(services: Services, at_work: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = at_work
    before = await row(services, job.id)
    await engine.renew([job.id], {job.id: Progress(3, 10)})
    found = await row(services, job.id)

    assert progress(found) == (10, 3, 0, 0)
    assert found.version == before.version + 1, "the ETag has moved"


async def test_only_a_change_is_a_new_version(services: Services, at_work: tuple[JobEngine, ClaimedJob]) -> None:
    engine, job = at_work
    before = await row(services, job.id)
    for done in (3, 3, 3, 7):
        await engine.renew([job.id], {job.id: Progress(done, 10)})
    await engine.renew([job.id])
    found = await row(services, job.id)

    assert progress(found) == (10, 7, 0, 0)
    assert found.version == before.version + 2


async def test_what_copies_nothing_is_renewed_beside_it(
    services: Services, at_work: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = at_work
    claim = await engine.claim((await a_queued_expand(services)).dispatch)
    assert claim is not None
    before = await row(services, claim.job.id)
    renewed = await engine.renew([job.id, claim.job.id], {job.id: Progress(1, 2)})
    found = await row(services, claim.job.id)

    assert {renewal.job_id for renewal in renewed.renewals} == {job.id, claim.job.id}
    assert (progress(found), found.version) == ((None,) * 4, before.version)


async def test_whoever_lost_the_job_writes_nothing_down(
    services: Services, at_work: tuple[JobEngine, ClaimedJob]
) -> None:
    _, job = at_work
    renewed = await an_engine(services).renew([job.id, uuid4()], {job.id: Progress(9, 10)})

    assert list(renewed.renewals) == []
    assert progress(await row(services, job.id)) == (None,) * 4


@pytest.mark.parametrize(
    ("seen", "copied_in_the_end", "expected"),
    [
        (None, 10, (10, 10, 0, 0)),
        (Progress(3, 10), 10, (10, 10, 0, 0)),
        (Progress(3, 10), None, (10, 10, 0, 0)),
        (Progress(3, 10), 12, (12, 12, 0, 0)),
        (None, None, (None,) * 4),
    ],
    ids=["too short to be seen", "seen", "copied by an earlier attempt", "grown meanwhile", "nothing to copy"],
)
async def test_in_the_end_it_is_all_of_it(
    services: Services,
    at_work: tuple[JobEngine, ClaimedJob],
    seen: Progress | None,
    copied_in_the_end: int | None,
    expected: tuple[int | None, ...],
) -> None:
    engine, job = at_work
    await engine.renew([job.id], {job.id: seen} if seen else {})
    await engine.settle(job, copied(job, copied_in_the_end))

    assert progress(await row(services, job.id)) == expected


async def test_an_attempt_that_failed_leaves_what_was_seen_of_it(
    services: Services, at_work: tuple[JobEngine, ClaimedJob]
) -> None:
    engine, job = at_work
    await engine.renew([job.id], {job.id: Progress(3, 10)})
    await engine.settle(job, RetryIn(0, {}))

    assert progress(await row(services, job.id)) == (10, 3, 0, 0)


async def test_other_jobs_have_no_progress_of_this_kind(services: Services) -> None:
    engine, job = await claimed(services, await a_queued_expand(services))
    await engine.settle(job, Succeeded({"volume_id": str(job.volume_id)}))

    assert progress(await row(services, job.id)) == (None,) * 4
