"""Bulk snapshots on one worker: one snapshot of each volume, and a result for each in the ledger."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.bulk.model import Item, ItemStatus
from domain.bulk.requests import Selection
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.errors import Invalid
from domain.services import Services, open_services
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.integration.bulk_builders import fail_for, items
from tests.integration.check_builders import findings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import set_job, sql, until
from tests.support.bulk import MIB, add_volumes, adds_up, ended, most_at_once

NIGHTLY = BulkSnapshotRequest("nightly")


@pytest.fixture
async def services(bulk_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(bulk_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def snapshots_of(services: Services) -> dict[UUID, list[tuple[str, str]]]:
    """Names and states of all snapshots, by volume, oldest first."""
    found: dict[UUID, list[tuple[str, str]]] = {}
    for row in await sql(services, "SELECT volume_id, name, state FROM snapshots ORDER BY created_at, id"):
        found.setdefault(row.volume_id, []).append((row.name, row.state))
    return found


async def states(services: Services) -> Counter[str]:
    return Counter(row.state for row in await sql(services, "SELECT state FROM volumes"))


async def snapshot(services: Services, item: Item) -> Snapshot:
    assert item.snapshot_id is not None
    return await services.snapshots.get(item.snapshot_id, project_id=DEFAULT_PROJECT)


async def on_disk(services: Services, count: int) -> list[UUID]:
    """Create volumes that each have their own data; requires a running worker."""
    made = [await services.volumes.request_create(NewVolume(f"v{number}", MIB, "files")) for number in range(count)]
    volumes = [(await ended(services, job)).volume_id or UUID(int=0) for job in made]
    for volume_id in volumes:
        (await data(services, volume_id)).write_bytes(volume_id.bytes * (MIB // 16))
    return volumes


async def data(services: Services, volume_id: UUID) -> Path:
    return Path(str(services.volumes.path(await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT))))


async def test_every_volume_gets_one_snapshot_with_its_data(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(bulk_settings):
        volumes = await on_disk(services, 12)
        job = await ended(services, await services.bulk.request(NIGHTLY))
        ledger = await items(services, job)

    assert (job.status, job.succeeded, job.total) == ("succeeded", 12, 12)
    assert sorted(ledger) == sorted(volumes)
    name = job.params["snapshot_name"]
    assert name.startswith("nightly-20")
    for volume_id, item in ledger.items():
        taken = await snapshot(services, item)
        assert (item.status, item.code, item.from_size, item.to_size) == ("succeeded", "snapshotted", MIB, None)
        assert (taken.volume_id, taken.name, taken.state, taken.size) == (volume_id, name, "ready", MIB)
        assert (taken.job_id, taken.schedule_id) == (None, None)
        kept = (await data(services, volume_id)).parent / "snapshots" / str(taken.id)
        assert kept.read_bytes() == volume_id.bytes * (MIB // 16)
    assert await states(services) == {"available": 12}
    assert await findings(services) == []


async def test_failed_items_leave_no_snapshot_and_are_retried_alone(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    volumes = await add_volumes(services, 300, backend="null")
    bad = sorted(volumes[::100])
    fail_for(tmp_path, "take_snapshot", bad)
    (tmp_path / "gate").touch()
    async with running_worker(bulk_settings):
        job = await services.bulk.request(BulkSnapshotRequest("n", max_concurrent=7))

        async def reached_concurrency() -> bool:
            return most_at_once(journal.read(tmp_path / "journal"), "take_snapshot") >= 7

        await until(reached_concurrency)
        (tmp_path / "gate").unlink()
        job = await ended(services, job)

        assert (job.status, job.succeeded, job.failed, job.skipped, job.total) == ("partial", 297, 3, 0, 300)
        failed = await items(services, job, ItemStatus.FAILED)
        assert sorted(failed) == bad
        assert {(item.code, item.snapshot_id) for item in failed.values()} == {("storage-full", None)}
        assert sorted(await snapshots_of(services)) == sorted(set(volumes) - set(bad))
        assert most_at_once(journal.read(tmp_path / "journal"), "take_snapshot") == 7

        fail_for(tmp_path, "take_snapshot", [])
        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.status, retry.succeeded, retry.total, retry.retry_of) == ("succeeded", 3, 3, job.id)
    assert sorted(await items(services, retry)) == bad
    assert retry.params["snapshot_name"] > job.params["snapshot_name"]
    found = await snapshots_of(services)
    assert {len(ready) for ready in found.values()} == {1}
    assert {found[volume_id][0] for volume_id in bad} == {(retry.params["snapshot_name"], "ready")}
    assert await states(services) == {"available": 300}


async def test_failure_with_unknown_leftovers_leaves_a_deletable_error(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(bulk_settings):
        (volume_id,) = await on_disk(services, 1)
        (tmp_path / "faults").write_text(f"take_snapshot:storage-full {volume_id}\nseal_snapshot:storage-full\n")
        job = await ended(services, await services.bulk.request(NIGHTLY))
        (item,) = (await items(services, job)).values()

        assert (job.status, item.status, item.code) == ("failed", "failed", "storage-full")
        assert (await snapshot(services, item)).state == "error"
        assert await states(services) == {"available": 1}

        (tmp_path / "faults").write_text("")
        retry = await ended(services, await services.jobs.retry(job.id))
        assert retry.status == "succeeded"
        assert (await ended(services, await services.snapshots.request_delete(item.snapshot_id or volume_id))).ended

    assert [[state for _, state in named] for named in (await snapshots_of(services)).values()] == [["ready"]]
    assert await findings(services) == []


async def test_concurrent_bulk_snapshots_each_take_every_snapshot_once(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 200, backend="null")
    requests = [BulkSnapshotRequest(name, max_concurrent=9) for name in ("one", "two")]
    async with running_worker(bulk_settings):
        accepted = [await services.bulk.request(request) for request in requests]
        jobs = [await ended(services, job) for job in accepted]

    assert [(job.status, job.succeeded) for job in jobs] == [("succeeded", 200)] * 2
    names = sorted(str(job.params["snapshot_name"]) for job in jobs)
    found = await snapshots_of(services)
    assert {tuple(sorted(named)) for named in found.values()} == {tuple((name, "ready") for name in names)}
    assert len(found) == 200


async def test_ledger_has_the_reason_for_every_volume_without_snapshot(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    fine, named, broken = await add_volumes(services, 3, backend="null")
    gone = uuid4()
    await sql(services, "UPDATE volumes SET state = 'error' WHERE id = :id", id=broken)
    selection = Selection(ids=(fine, named, broken, gone))
    job = await services.bulk.request(BulkSnapshotRequest("n", selection=selection))
    await sql(
        services,
        "INSERT INTO snapshots (id, volume_id, name, state, size, version) VALUES (:id, :volume, :name, 'ready', 1, 1)",
        id=uuid4(),
        volume=named,
        name=job.params["snapshot_name"],
    )
    async with running_worker(bulk_settings):
        job = await ended(services, job)

    codes = {volume_id: (item.status, item.code) for volume_id, item in (await items(services, job)).items()}
    assert codes == {
        fine: ("succeeded", "snapshotted"),
        named: ("failed", "name-taken"),
        broken: ("skipped", "volume-unusable"),
        gone: ("skipped", "volume-gone"),
    }
    assert (job.status, adds_up(job)) == ("partial", True)
    assert await states(services) == {"available": 2, "error": 1}


async def test_busy_volume_is_retried_then_skipped(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    operation = await services.volumes.request_expand(volume_id, Growth(to=7 * MIB))
    await set_job(
        services, operation.id, "run_at = 'infinity', dispatched_at = NULL, epoch = 1"
    )  # no worker claims it yet
    async with running_worker(bulk_settings):
        job = await services.bulk.request(NIGHTLY)

        async def is_postponed() -> bool:
            return (await items(services, job)).get(volume_id, Item()).code == "volume-busy"

        await until(is_postponed)
        await set_job(services, operation.id, "run_at = now()")
        job = await ended(services, job)
        (item,) = (await items(services, job)).values()
    assert (job.status, item.from_size) == ("succeeded", 7 * MIB)

    operation = await services.volumes.request_expand(volume_id, Growth(to=8 * MIB))
    await set_job(services, operation.id, "run_at = 'infinity', dispatched_at = NULL, epoch = 1")
    async with running_worker(bulk_settings.model_copy(update={"busy_seconds": 0.5})):
        job = await ended(services, await services.bulk.request(NIGHTLY))
    assert (job.status, job.skipped, job.total) == ("succeeded", 1, 1)


async def test_cancel_skips_unstarted_items_and_keeps_finished_ones(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 300, backend="null")
    async with running_worker(bulk_settings):
        job = await services.bulk.request(BulkSnapshotRequest("n", max_concurrent=2))

        async def some_succeeded() -> bool:
            return bool((await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).succeeded)

        await until(some_succeeded)
        await services.jobs.cancel(job.id)
        job = await ended(services, job)
        taken = set(await items(services, job, ItemStatus.SUCCEEDED))
        skipped = await items(services, job, ItemStatus.SKIPPED)

        assert (job.status, adds_up(job), len(taken), len(skipped)) == ("cancelled", True, job.succeeded, job.skipped)
        assert {(item.code, item.snapshot_id) for item in skipped.values()} == {("cancelled", None)}
        assert set(await snapshots_of(services)) == taken, "unstarted items leave no snapshot"
        assert await states(services) == {"available": 300}
        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.status, retry.succeeded, retry.total) == ("succeeded", job.skipped, job.skipped)
    assert Counter(map(len, (await snapshots_of(services)).values())) == {1: 300}


async def test_invalid_request_is_refused_with_its_field(services: Services) -> None:
    for request, field in (
        (BulkSnapshotRequest("n", max_concurrent=101), "max_concurrent"),
        (BulkSnapshotRequest("n", max_concurrent=0), "max_concurrent"),
        (BulkSnapshotRequest("n", keep=RetentionRule(last=3)), "keep_last"),
        (BulkSnapshotRequest("n", keep=RetentionRule(days=3)), "keep_days"),
    ):
        with pytest.raises(Invalid) as refused:
            await services.bulk.request(request)
        assert refused.value.details["field"] == field

    assert await sql(services, "SELECT id FROM jobs") == []


async def test_volumes_are_selected_by_labels_and_backend(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 3, backend="null", labels={"tier": "gold"})
    await sql(services, "UPDATE volumes SET name = 'gold-' || name")
    await add_volumes(services, 2, backend="null")
    request = BulkSnapshotRequest("n", selection=Selection(labels={"tier": "gold"}, backend="null"))
    async with running_worker(bulk_settings):
        job = await ended(services, await services.bulk.request(request))

    assert (job.status, job.total) == ("succeeded", 3)
