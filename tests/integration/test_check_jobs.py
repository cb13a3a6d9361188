"""Rows against the jobs that hold them: no row stays in a state that no job will end."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.check_builders import (
    findings,
    grant_at,
    on_disk,
    repair_all,
    repair_beside_a_worker,
    run_check,
)
from tests.integration.job_builders import MIB, a_queued_expand, row, set_job, sql, volume_row
from tests.integration.snapshot_builders import (
    OPERATIONS,
    a_snapshot,
    a_stored_volume,
    all_rows,
    carried_out,
    claimed,
    requested,
    snapshot_row,
    states,
)
from tests.integration.webhook_builders import a_webhook, event_types
from tests.support.bulk import add_volumes

GROWN = 3 * MIB
ENDED = "status = 'failed', finished_at = now(), lease_expires_at = NULL"


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    settings = on_disk(settings, tmp_path).model_copy(update={"webhook_hosts": ("127.0.0.1",)})
    async with open_services(settings, adopt=True) as services:
        yield services


@pytest.mark.parametrize(
    ("state", "size", "resting_state"),
    [
        ("creating", GROWN, "error"),
        ("expanding", GROWN, "available"),
        ("snapshotting", GROWN, "available"),
        ("restoring", GROWN, "available"),
        ("deleting", GROWN, "error"),
        ("expanding", None, "error"),
    ],
)
async def test_volume_without_job_is_released_with_the_stored_size(
    services: Services, state: str, size: int | None, resting_state: str
) -> None:
    volume, driver = await a_stored_volume(services, backend="disk"), services.backends.get("disk")
    if size is None:
        await driver.delete(volume.id, grant_at(9))
    else:
        await driver.expand(volume.id, size, grant_at(9))
    await sql(services, "UPDATE volumes SET state = :state, job_id = :job", state=state, job=uuid4())

    assert await findings(services) == [("no-job", f"volume {volume.id}", True)]
    assert await repair_all(services) == ["no-job"]
    found = await volume_row(services, volume.id)
    assert (found["state"], found["job_id"], found["size"]) == (resting_state, None, size or MIB)
    assert found["version"] == 11  # above the fence that excludes earlier attempts


@pytest.mark.parametrize(
    ("state", "resting_state"),
    [("taking", "error"), ("restoring", "ready"), ("cloning", "ready"), ("deleting", "error")],
)
async def test_snapshot_without_job_is_released(services: Services, state: str, resting_state: str) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services, backend="disk"))
    await sql(services, "UPDATE snapshots SET state = :state, job_id = :job", state=state, job=uuid4())

    assert await findings(services) == [("no-job", f"snapshot {snapshot.id}", True)]
    assert await repair_all(services) == ["no-job"]
    found = await snapshot_row(services, snapshot.id)
    assert (found["state"], found["job_id"]) == (resting_state, None)


async def test_volume_of_an_ended_job_is_reported_as_without_job(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await set_job(services, job.id, ENDED)

    assert await repair_all(services) == ["no-job"]
    again = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    assert (await carried_out(services, again)).status == "succeeded"


async def test_volume_held_by_a_job_for_another_volume_is_reported_as_without_job(services: Services) -> None:
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

    assert ("no-job", f"volume {volume.id}", True) in await findings(services)


async def test_volume_without_job_on_the_null_backend_is_released(settings: Settings) -> None:
    async with open_services(settings.model_copy(update={"backends": {"memory": "null:"}}), adopt=True) as services:
        (volume_id,) = await add_volumes(services, 1, backend="memory")
        await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid4())

        assert await repair_all(services) == ["no-job"]
        assert (await volume_row(services, volume_id))["state"] == "available"


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("running", [False, True])
async def test_volumes_and_snapshots_of_live_jobs_are_not_reported(
    services: Services, kind: str, *, running: bool
) -> None:
    job = await requested(services, kind, await a_stored_volume(services, backend="disk"))
    if running:
        await claimed(services, job)

    assert await findings(services) == []


async def test_clone_jobs_sharing_a_snapshot_are_not_reported(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    snapshot = await a_snapshot(services, volume)
    clones = [await requested(services, "snapshot.clone", volume, snapshot) for _ in range(3)]

    for job in clones:
        assert await findings(services) == []
        assert (await carried_out(services, job)).status == "succeeded"
    assert await findings(services) == []


async def test_job_that_lost_its_volume_is_failed_and_its_snapshot_released(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await requested(services, "snapshot.take", volume)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")

    assert await findings(services) == [("not-held", f"job {job.id}", True)]
    assert await repair_all(services) == ["not-held"]
    ended = await row(services, job.id)
    assert (ended.status, (ended.error or {})["code"]) == ("failed", "not-held")
    assert await states(services, job) == ("available", "error")


async def test_webhooks_are_told_of_a_job_that_the_repair_fails(services: Services) -> None:
    await requested(services, "snapshot.take", await a_stored_volume(services, backend="disk"))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await a_webhook(services)

    assert await repair_all(services) == ["not-held"]
    assert await event_types(services) == ["job.failed"]


async def test_job_whose_volume_row_is_gone_is_failed_and_the_data_adopted(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await sql(services, "DELETE FROM volumes")

    assert await repair_all(services) == ["not-held", "no-row"]
    assert (await row(services, job.id)).status == "failed"
    assert (await volume_row(services, volume.id))["state"] == "available"


async def test_leased_job_is_never_failed_by_a_repair(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "backend = 'disk'")
    await claimed(services, job)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL, backend = 'disk'")
    before = await row(services, job.id)
    found = {one.code.value: one for one in await repair_beside_a_worker(services)}

    assert (found["not-held"].repairable, found["not-held"].repaired) == (False, False)
    assert (await row(services, job.id)).version == before.version


async def test_job_whose_lease_expired_long_ago_is_requeued(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await claimed(services, job)
    await set_job(services, job.id, "lease_expires_at = now() - interval '20 seconds'")
    assert await findings(services) == []  # maintenance may still rescue it
    await set_job(services, job.id, "lease_expires_at = now() - interval '40 seconds'")

    assert await repair_all(services) == ["no-worker"]
    waiting = await row(services, job.id)
    assert (waiting.status, waiting.epoch, waiting.dispatched_at) == ("queued", 1, None)
    assert (await carried_out(services, waiting)).status == "succeeded"


@pytest.mark.parametrize("orphaned", [False, True])
@pytest.mark.parametrize("kind", ["volume.expand", "volume.create", "snapshot.take", "snapshot.restore"])
async def test_queued_job_is_raised_above_the_stored_fence_and_succeeds(
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
        await driver.seal_snapshot(volume.id, job.snapshot_id, grant_at(70, 1))
    else:
        await driver.seal(job.volume_id, grant_at(70, 1))
    if orphaned:
        await claimed(services, job)
        await set_job(services, job.id, "lease_expires_at = now() - interval '1 second'")

    assert await repair_all(services) == ["fence-behind"]
    if orphaned:
        await set_job(services, job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    assert (await carried_out(services, await row(services, job.id))).status == "succeeded"
    assert await findings(services) == []


async def test_leased_job_keeps_its_fence(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await claimed(services, job)
    await services.backends.get("disk").seal(volume.id, grant_at(70))
    before = await all_rows(services)
    (finding,) = await repair_beside_a_worker(services)

    assert (finding.code.value, finding.repaired) == ("fence-behind", False)
    assert await all_rows(services) == before


async def test_repair_waits_for_the_lease_of_a_worker_that_has_died(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=GROWN))
    await claimed(services, job)
    await services.backends.get("disk").seal(volume.id, grant_at(70))
    await set_job(services, job.id, "lease_expires_at = now() + interval '1 second'")

    assert await repair_all(services) == ["fence-behind"]
    await set_job(services, job.id, "status = 'queued', epoch = epoch + 1, lease_expires_at = NULL")
    assert (await carried_out(services, await row(services, job.id))).status == "succeeded"


async def test_row_held_but_not_published_by_a_job_is_raised_above_the_stored_fence(services: Services) -> None:
    """The fence of a restored snapshot or a copied volume is checked only by the next job that publishes it."""
    volume = await a_stored_volume(services, backend="disk")
    job = await requested(services, "snapshot.take", volume)
    await claimed(services, job)
    await services.backends.get("disk").seal(volume.id, grant_at(70))

    assert await repair_all(services) == ["fence-behind"]
    assert (await volume_row(services, volume.id))["version"] == 71


async def test_published_but_unsettled_attempt_is_not_reported(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    _, own = await claimed(services, await services.volumes.request_expand(volume.id, Growth(to=GROWN)))
    await services.backends.get("disk").expand(volume.id, GROWN, grant_at(*own.fence))

    assert await findings(services) == []


async def test_snapshot_is_not_adopted_while_its_volume_is_being_deleted(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await services.volumes.request_delete(volume.id)
    await services.backends.get("disk").take_snapshot(volume.id, uuid7(), grant_at(1))

    assert [(one.code.value, one.repaired) for one in await run_check(services, repair=True)] == [("no-row", False)]
