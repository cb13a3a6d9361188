"""Rows and the jobs that have them, or should: nothing stays in a state that nobody will end."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.integration.check_builders import as_repaired, inspect, leave, on_disk, told
from tests.integration.job_builders import MIB, a_queued_expand, row, set_job, sql, volume_row
from tests.integration.snapshot_builders import (
    a_snapshot,
    a_stored_volume,
    all_rows,
    carried_out,
    claimed,
    requested,
    snapshot_row,
    states,
)
from tests.support.bulk import add_volumes

GROWN = 3 * MIB
ENDED = "status = 'failed', finished_at = now(), lease_expires_at = NULL"


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path)) as services:
        yield services


@pytest.mark.parametrize(
    ("state", "size", "rest"),
    [
        ("creating", GROWN, "error"),
        ("expanding", GROWN, "available"),
        ("snapshotting", GROWN, "available"),
        ("restoring", GROWN, "available"),
        ("deleting", GROWN, "error"),
        ("expanding", None, "error"),
    ],
)
async def test_a_stranded_volume_goes_the_way_out_with_the_size_found(
    services: Services, state: str, size: int | None, rest: str
) -> None:
    volume, driver = await a_stored_volume(services, backend="disk"), services.backends.get("disk")
    if size is None:
        await driver.delete(volume.id, leave(9))
    else:
        await driver.expand(volume.id, size, leave(9))
    await sql(services, "UPDATE volumes SET state = :state, job_id = :job", state=state, job=uuid4())

    assert await told(services) == [("no-job", f"volume {volume.id}", True)]
    assert await as_repaired(services) == ["no-job"]
    found = await volume_row(services, volume.id)
    assert (found["state"], found["job_id"], found["size"]) == (rest, None, size or MIB)
    assert found["version"] == 11  # above the fence under which earlier attempts were shut out


@pytest.mark.parametrize(
    ("state", "rest"), [("taking", "error"), ("restoring", "ready"), ("cloning", "ready"), ("deleting", "error")]
)
async def test_a_stranded_snapshot_goes_the_way_out(services: Services, state: str, rest: str) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services, backend="disk"))
    await sql(services, "UPDATE snapshots SET state = :state, job_id = :job", state=state, job=uuid4())

    assert await told(services) == [("no-job", f"snapshot {snapshot.id}", True)]
    assert await as_repaired(services) == ["no-job"]
    found = await snapshot_row(services, snapshot.id)
    assert (found["state"], found["job_id"]) == (rest, None)


async def test_a_volume_whose_job_has_ended_without_it_is_stranded(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await set_job(services, job.id, ENDED)

    assert await as_repaired(services) == ["no-job"]
    again = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    assert (await carried_out(services, again)).status == "succeeded"


async def test_a_volume_in_the_hands_of_a_job_that_is_about_another_is_stranded(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    other = await services.volumes.request_expand(
        (await a_stored_volume(services, backend="disk")).id, Growth(to=GROWN)
    )
    await sql(
        services,
        "UPDATE volumes SET state = 'expanding', job_id = :job WHERE id = :id",
        job=other.id,
        id=volume.id,
    )

    assert ("no-job", f"volume {volume.id}", True) in await told(services)


async def test_a_stranded_volume_on_a_backend_without_bytes_comes_to_rest_too(settings: Settings) -> None:
    async with open_services(settings.model_copy(update={"backends": {"memory": "null:"}})) as services:
        (volume_id,) = await add_volumes(services, 1, backend="memory")
        await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid4())

        assert await as_repaired(services) == ["no-job"]
        assert (await volume_row(services, volume_id))["state"] == "available"


@pytest.mark.parametrize("kind", ["snapshot.take", "snapshot.restore", "snapshot.delete", "snapshot.clone"])
@pytest.mark.parametrize("at_work", [False, True])
async def test_what_live_jobs_have_in_their_hands_is_no_finding(
    services: Services, kind: str, *, at_work: bool
) -> None:
    job = await requested(services, kind, await a_stored_volume(services, backend="disk"))
    if at_work:
        await claimed(services, job)

    assert await told(services) == []


async def test_clones_that_share_a_snapshot_are_no_finding(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    snapshot = await a_snapshot(services, volume)
    clones = [await requested(services, "snapshot.clone", volume, snapshot) for _ in range(3)]

    for job in clones:
        assert await told(services) == []
        assert (await carried_out(services, job)).status == "succeeded"
    assert await told(services) == []


async def test_a_job_that_lost_its_volume_is_ended_by_its_own_way_out(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await requested(services, "snapshot.take", volume)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")

    assert await told(services) == [("not-held", f"job {job.id}", True)]
    assert await as_repaired(services) == ["not-held"]
    ended = await row(services, job.id)
    assert (ended.status, (ended.error or {})["code"]) == ("failed", "not-held")
    assert await states(services, job) == ("available", "error")


async def test_a_job_whose_volume_is_gone_is_ended_and_the_data_adopted(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await sql(services, "DELETE FROM volumes")

    assert await as_repaired(services) == ["not-held", "no-row"]
    assert (await row(services, job.id)).status == "failed"
    assert (await volume_row(services, volume.id))["state"] == "available"


async def test_a_job_that_a_worker_is_at_is_never_ended(services: Services) -> None:
    job = await a_queued_expand(services)
    await claimed(services, job)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL, backend = 'disk'")
    before = await row(services, job.id)
    (finding, *_) = await inspect(services, repair=True)

    assert (finding.code.value, finding.repairable, finding.repaired) == ("not-held", False, False)
    assert (await row(services, job.id)).version == before.version


async def test_a_job_whose_lease_ended_long_ago_goes_back_into_the_queue(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await claimed(services, job)
    await set_job(services, job.id, "lease_expires_at = now() - interval '20 seconds'")
    assert await told(services) == []  # housekeeping may still come
    await set_job(services, job.id, "lease_expires_at = now() - interval '40 seconds'")

    assert await as_repaired(services) == ["no-worker"]
    waiting = await row(services, job.id)
    assert (waiting.status, waiting.epoch, waiting.dispatched_at) == ("queued", 1, None)
    assert (await carried_out(services, waiting)).status == "succeeded"


@pytest.mark.parametrize("orphaned", [False, True])
@pytest.mark.parametrize("kind", ["volume.expand", "volume.create", "snapshot.take", "snapshot.restore"])
async def test_a_waiting_job_is_lifted_above_the_fence_and_can_end(
    services: Services, kind: str, *, orphaned: bool
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    if kind == "volume.create":
        job = await services.volumes.request_create(NewVolume("new", MIB))
    elif kind == "volume.expand":
        job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    else:
        job = await requested(services, kind, volume)
    driver = services.backends.get("disk")
    assert job.volume_id is not None
    if kind == "snapshot.take" and job.snapshot_id is not None:
        await driver.seal_snapshot(volume.id, job.snapshot_id, leave(70, 1))
    else:
        await driver.seal(job.volume_id, leave(70, 1))
    if orphaned:
        await claimed(services, job)
        await set_job(services, job.id, "lease_expires_at = now() - interval '1 second'")

    assert await as_repaired(services) == ["fence-behind"]
    if orphaned:
        await set_job(services, job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    assert (await carried_out(services, await row(services, job.id))).status == "succeeded"
    assert await told(services) == []


async def test_a_job_that_a_worker_is_at_keeps_its_fence(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await claimed(services, job)
    await services.backends.get("disk").seal(volume.id, leave(70))
    before = await all_rows(services)
    (finding,) = await inspect(services, repair=True)

    assert (finding.code.value, finding.repaired) == ("fence-behind", False)
    assert await all_rows(services) == before


async def test_a_row_that_a_job_only_keeps_from_others_is_lifted_above_the_fence(services: Services) -> None:
    """A snapshot that is restored, a volume that is copied: their own fences are for the next job to heed."""
    volume = await a_stored_volume(services, backend="disk")
    job = await requested(services, "snapshot.take", volume)
    await claimed(services, job)
    await services.backends.get("disk").seal(volume.id, leave(70))

    assert await as_repaired(services) == ["fence-behind"]
    assert (await volume_row(services, volume.id))["version"] == 71


async def test_an_attempt_that_has_published_and_not_yet_settled_is_no_finding(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    _, own = await claimed(services, await services.volumes.request_expand(volume.id, Growth(to=GROWN)))
    await services.backends.get("disk").expand(volume.id, GROWN, leave(*own.fence))

    assert await told(services) == []


async def test_a_snapshot_is_not_adopted_while_its_volume_is_being_deleted(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await services.volumes.request_delete(volume.id)
    await services.backends.get("disk").take_snapshot(volume.id, uuid7(), leave(1))

    assert [(one.code.value, one.repaired) for one in await inspect(services, repair=True)] == [("no-row", False)]
