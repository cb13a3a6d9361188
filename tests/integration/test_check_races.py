"""Inspections beside one another and beside workers: what is in motion is no damage, and nothing is mended twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from domain.check.live_jobs import LiveJobs
from domain.check.repair import Repair
from domain.check.rows import CheckRepository
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.file.driver import FileDriver
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.integration.check_builders import as_repaired, folder, inspect, leave, on_disk, told
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, row, sql, volume_row
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume, carried_out, claimed, done


@pytest.fixture
def disk(settings: Settings, tmp_path: Path) -> Settings:
    return on_disk(settings, tmp_path)


@pytest.fixture
async def services(disk: Settings) -> AsyncIterator[Services]:
    async with open_services(disk) as services:
        yield services


def before(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, happening: Callable[[], Awaitable[Any]]) -> None:
    """Have something happen once, right before a method is called."""
    original, happenings = getattr(owner, method), [happening]

    async def call(*args: Any, **kwargs: Any) -> Any:
        if happenings:
            await happenings.pop()()
        return await original(*args, **kwargs)

    monkeypatch.setattr(owner, method, call)


async def test_what_a_job_ends_between_two_looks_is_no_finding(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    _, own = await claimed(services, job)
    await services.backends.get("disk").expand(volume.id, 2 * MIB, leave(*own.fence))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now(), lease_expires_at = NULL")

    async def record() -> None:
        await sql(services, "UPDATE volumes SET size = :size, version = version + 1", size=2 * MIB)

    assert {code for code, _, _ in await told(services)} == {"size-differs", "fence-behind"}
    before(monkeypatch, CheckRepository, "among", record)
    assert await told(services) == []


async def test_a_row_that_moves_right_before_it_is_mended_is_left_alone(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(3 * MIB)
    before(monkeypatch, Repair, "repair", lambda: services.volumes.request_expand(volume.id, Growth(to=4 * MIB)))

    assert await inspect(services, repair=True) == []
    found = await volume_row(services, volume.id)
    assert (found["state"], found["size"]) == ("expanding", MIB)


async def test_a_job_that_is_claimed_right_before_its_fence_is_renewed_keeps_it(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    await services.backends.get("disk").seal(volume.id, leave(70))
    before(monkeypatch, Repair, "repair", lambda: claimed(services, job))

    assert await inspect(services, repair=True) == []
    assert (await row(services, job.id)).params["fence"] == job.params["fence"]
    assert (await volume_row(services, volume.id))["version"] == job.params["fence"]


async def test_a_job_that_is_claimed_right_before_it_would_be_ended_goes_on(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    before(monkeypatch, LiveJobs, "_mend", lambda: claimed(services, job))

    assert await inspect(services, repair=True) == []
    assert (await row(services, job.id)).status == "running"


async def test_data_that_somebody_else_adopts_between_two_looks_is_no_finding(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await services.backends.get("disk").create(uuid7(), MIB, leave(1))
    before(monkeypatch, FileDriver, "stat", lambda: inspect(services, repair=True))

    assert await inspect(services) == []


async def damage(services: Services) -> None:
    """One of each that can be mended."""
    driver = services.backends.get("disk")
    for _ in range(4):
        volume = await a_stored_volume(services, backend="disk")
        snapshot = await a_snapshot(services, volume)
        await driver.seal_snapshot(volume.id, snapshot.id, leave(30))
        await driver.expand(volume.id, 2 * MIB, leave(20))
        (folder(services, volume.id) / "data.1-0.tmp").touch()
        stranded = await a_stored_volume(services, backend="disk")
        await sql(
            services,
            "UPDATE volumes SET state = 'expanding', job_id = :job WHERE id = :id",
            job=uuid7(),
            id=stranded.id,
        )
        await driver.create(uuid7(), MIB, leave(3))
        waiting = await a_stored_volume(services, backend="disk")
        await services.volumes.request_expand(waiting.id, Growth(to=2 * MIB))
        await driver.seal(waiting.id, leave(40))
        lost = await services.volumes.request_expand((await a_stored_volume(services, backend="disk")).id, Growth(by=1))
        await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL WHERE id = :id", id=lost.volume_id)


async def test_two_inspections_at_once_mend_everything_once(services: Services) -> None:
    await damage(services)
    subjects = {(code, subject) for code, subject, _ in await told(services)}
    found = await asyncio.gather(*(inspect(services, repair=True) for _ in range(3)))
    mends = [(finding.code.value, finding.subject) for findings in found for finding in findings if finding.repaired]

    # A leftover may be swept by two; a row is mended by one.
    rows = [mend for mend in mends if mend[0] != "leftover"]
    assert len(rows) == len(set(rows))
    assert set(mends) == subjects
    assert [str(one) for findings in found for one in findings if not one.repaired] == []
    assert await told(services) == []


class Killed(BaseException):
    """What no step can catch."""


async def test_an_inspection_that_dies_after_any_mending_is_taken_up_by_the_next(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await damage(services)
    kills = 0
    for method in ("mend", "adopt_volume"):
        original = getattr(Repair, method)

        async def mend_and_die(*args: Any, original: Any = original) -> Any:
            await original(*args)
            raise Killed

        monkeypatch.setattr(Repair, method, mend_and_die)
    for _ in await told(services):
        try:
            await inspect(services, repair=True)
        except Killed:
            kills += 1

    assert kills > 8
    assert await told(services) == []


async def test_an_inspection_that_dies_between_disk_and_row_is_taken_up_by_the_next(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid7())

    async def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("domain.check.repair._lock", die)
        with pytest.raises(Killed):
            await inspect(services, repair=True)

    assert await as_repaired(services) == ["no-job"]
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    assert (await carried_out(services, job)).status == "succeeded"


async def test_inspections_beside_busy_workers_find_nothing(
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
        looks, found = 0, []
        while not finished.is_set():
            found += [str(finding) for finding in await inspect(services, repair=looks % 2 == 1)]
            looks += 1
        return looks, found

    async with running_worker(disk), running_worker(disk):
        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(life(number) for number in range(6)))
        finally:
            finished.set()
            looks, found = await watching

    assert found == []
    assert looks > 3
    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("succeeded",)]


async def test_what_is_held_by_somebody_is_told_and_not_mended(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'expanding', job_id = :job", job=uuid7())
    await services.backends.get("disk").seal(volume.id, leave(5))

    async def overtake() -> None:
        await services.backends.get("disk").seal(volume.id, leave(90))

    before(monkeypatch, Repair, "repair", overtake)
    (finding,) = await inspect(services, repair=True)

    assert not finding.repaired
    assert "too late" in finding.remedy
    assert (await volume_row(services, volume.id))["state"] == "expanding"
    again = await inspect(services, repair=True)
    assert [one.repaired for one in again] == [True]
    job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
    assert (await carried_out(services, job)).status == "succeeded"
