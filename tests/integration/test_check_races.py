"""Concurrent checks, beside workers: work in progress is not reported, and nothing is repaired twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from domain.check.jobs import LiveJobs
from domain.check.repair import Repair
from domain.check.rows import RowReader
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.file.driver import FileDriver
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.check_builders import findings, folder, grant_at, on_disk, repair_all, run_check
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, row, sql, volume_row
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume, carried_out, claimed, done


@pytest.fixture
def disk(settings: Settings, tmp_path: Path) -> Settings:
    return on_disk(settings, tmp_path)


@pytest.fixture
async def services(disk: Settings) -> AsyncIterator[Services]:
    async with open_services(disk, adopt=True) as services:
        yield services


def before(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, action: Callable[[], Awaitable[Any]]) -> None:
    """Run an action once, right before the first call of a method."""
    original, pending = getattr(owner, method), [action]

    async def call(*args: Any, **kwargs: Any) -> Any:
        if pending:
            await pending.pop()()
        return await original(*args, **kwargs)

    monkeypatch.setattr(owner, method, call)


async def test_difference_that_a_job_settles_between_two_reads_is_not_reported(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    _, own = await claimed(services, job)
    await services.backends.get("disk").expand(volume.id, 2 * MIB, grant_at(*own.fence))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now(), lease_expires_at = NULL")

    async def record() -> None:
        await sql(services, "UPDATE volumes SET size = :size, version = version + 1", size=2 * MIB)

    assert {code for code, _, _ in await findings(services)} == {"size-differs", "fence-behind"}
    before(monkeypatch, RowReader, "get_many", record)
    assert await findings(services) == []


async def test_row_that_changes_right_before_its_repair_is_not_changed(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(3 * MIB)
    before(monkeypatch, Repair, "repair_row", lambda: services.volumes.request_expand(volume.id, Growth(to=4 * MIB)))

    assert await run_check(services, repair=True) == []
    found = await volume_row(services, volume.id)
    assert (found["state"], found["size"]) == ("expanding", MIB)


async def test_job_claimed_right_before_its_fence_is_raised_keeps_it(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    await services.backends.get("disk").seal(volume.id, grant_at(70))
    before(monkeypatch, Repair, "repair_row", lambda: claimed(services, job))

    assert await run_check(services, repair=True) == []
    assert (await row(services, job.id)).params["fence_version"] == job.params["fence_version"]
    assert (await volume_row(services, volume.id))["version"] == job.params["fence_version"]


async def test_job_claimed_right_before_it_would_be_failed_continues(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    before(monkeypatch, LiveJobs, "_repair", lambda: claimed(services, job))

    assert await run_check(services, repair=True) == []
    assert (await row(services, job.id)).status == "running"


async def test_data_adopted_by_another_check_between_two_reads_is_not_reported(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await services.backends.get("disk").create(uuid7(), MIB, grant_at(1))
    before(monkeypatch, FileDriver, "stat", lambda: run_check(services, repair=True))

    assert await run_check(services) == []


async def damage(services: Services) -> None:
    """Create one of each repairable inconsistency, four times."""
    driver = services.backends.get("disk")
    for _ in range(4):
        volume = await a_stored_volume(services, backend="disk")
        snapshot = await a_snapshot(services, volume)
        await driver.seal_snapshot(volume.id, snapshot.id, grant_at(30))
        await driver.expand(volume.id, 2 * MIB, grant_at(20))
        (folder(services, volume.id) / "data.1-0.tmp").touch()
        without_job = await a_stored_volume(services, backend="disk")
        await sql(
            services,
            "UPDATE volumes SET state = 'expanding', job_id = :job WHERE id = :id",
            job=uuid7(),
            id=without_job.id,
        )
        await driver.create(uuid7(), MIB, grant_at(3))
        waiting = await a_stored_volume(services, backend="disk")
        await services.volumes.request_expand(waiting.id, Growth(to=2 * MIB))
        await driver.seal(waiting.id, grant_at(40))
        lost = await services.volumes.request_expand((await a_stored_volume(services, backend="disk")).id, Growth(by=1))
        await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL WHERE id = :id", id=lost.volume_id)


async def test_concurrent_repairs_repair_every_row_once(services: Services) -> None:
    await damage(services)
    subjects = {(code, subject) for code, subject, _ in await findings(services)}
    found = await asyncio.gather(*(run_check(services, repair=True) for _ in range(3)))
    repairs = [(finding.code.value, finding.subject) for report in found for finding in report if finding.repaired]

    # Two checks may sweep the same leftover; a row is repaired by one.
    rows = [repair for repair in repairs if repair[0] != "leftover"]
    assert len(rows) == len(set(rows))
    assert set(repairs) == subjects
    assert [str(finding) for report in found for finding in report if not finding.repaired] == []
    assert await findings(services) == []


class Killed(BaseException):
    """Ends a check at any step: no step catches a BaseException."""


async def test_next_repair_completes_one_that_was_killed_after_any_step(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await damage(services)
    kills = 0
    for method in ("repair_row", "adopt_volume"):
        original = getattr(Repair, method)

        async def repair_and_die(*args: Any, original: Any = original) -> Any:
            await original(*args)
            raise Killed

        monkeypatch.setattr(Repair, method, repair_and_die)
    for _ in await findings(services):
        try:
            await run_check(services, repair=True)
        except Killed:
            kills += 1

    assert kills > 8
    assert await findings(services) == []


async def test_next_repair_completes_one_that_was_killed_between_disk_and_row(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid7())

    async def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("domain.check.repair._lock", die)
        with pytest.raises(Killed):
            await run_check(services, repair=True)

    assert await repair_all(services) == ["no-job"]
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    assert (await carried_out(services, job)).status == "succeeded"


async def test_checks_beside_busy_workers_find_nothing(
    services: Services, disk: Settings, running_worker: RunningWorker
) -> None:
    finished = asyncio.Event()

    async def life(number: int) -> None:
        created = await done(services, await services.volumes.request_create(NewVolume(f"v{number}", MIB)))
        assert created.volume_id is not None
        for round_ in range(3):
            size = (round_ + 2) * MIB
            await done(services, await services.volumes.request_expand(created.volume_id, Growth(to=size)))
            taken = await done(services, await services.snapshots.request_take(created.volume_id, f"s{round_}"))
            assert taken.snapshot_id is not None
            await done(services, await services.snapshots.request_restore(taken.snapshot_id))
            clone = await done(
                services, await services.snapshots.request_clone(taken.snapshot_id, NewVolume(f"c{taken.id}"))
            )
            assert clone.volume_id is not None
            await done(services, await services.snapshots.request_delete(taken.snapshot_id))
            await done(services, await services.volumes.request_delete(clone.volume_id))
        await done(services, await services.volumes.request_delete(created.volume_id))

    async def watch() -> tuple[int, list[str]]:
        checks, found = 0, []
        while not finished.is_set():
            found += [str(finding) for finding in await run_check(services, repair=checks % 2 == 1)]
            checks += 1
        return checks, found

    async with running_worker(disk), running_worker(disk):
        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(life(number) for number in range(6)))
        finally:
            finished.set()
            checks, found = await watching

    assert found == []
    assert checks > 3
    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("succeeded",)]


async def test_row_whose_storage_refuses_the_seal_is_reported_and_not_repaired(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid7())
    await services.backends.get("disk").seal(volume.id, grant_at(5))

    async def overtake() -> None:
        await services.backends.get("disk").seal(volume.id, grant_at(90))

    before(monkeypatch, Repair, "repair_row", overtake)
    (finding,) = await run_check(services, repair=True)

    assert not finding.repaired
    assert "is stale" in finding.remedy
    assert (await volume_row(services, volume.id))["state"] == "expanding"
    again = await run_check(services, repair=True)
    assert [one.repaired for one in again] == [True]
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    assert (await carried_out(services, job)).status == "succeeded"
