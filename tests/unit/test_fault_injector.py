"""The fault injector fails, delays and journals operations exactly as its options specify."""

import asyncio
import fcntl
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.errors import ConfigurationError
from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused, StorageFull
from domain.storage.null import NullDriver
from tests.unit.storage_builders import Scenario, opened

MIB = 1024 * 1024
VOLUME, SNAPSHOT, CLONE = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "123")


def attempt(version: int = 1, epoch: int = 1) -> Grant:
    return Grant(uuid4(), Fence(version, epoch), deadline=1.0, clock=lambda: 0.0)


def faulty(options: str, inner: str = "memory:") -> StorageDriver:
    return opened(f"faulty+{inner}?{options}", threads=2)


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def events(journal: Path) -> list[tuple[object, object]]:
    return [(line["event"], line["operation"]) for line in lines(journal)]


async def begun(journal: Path, *, count: int = 1) -> None:
    """Yield to the other tasks until so many operations have begun."""
    async with asyncio.timeout(30):
        while journal.read_text().count('"begun"') < count:
            await asyncio.sleep(0)


def test_without_options_the_inner_driver_itself_is_opened() -> None:
    assert isinstance(open_driver("faulty+null:", threads=1), NullDriver)


class TestJournal:
    async def test_each_operation_is_journaled_as_begun_and_published(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        grant = attempt()
        await driver.create(VOLUME, MIB, grant)
        await driver.expand(VOLUME, 2 * MIB, grant)
        await driver.seal(VOLUME, grant)
        await driver.delete(VOLUME, grant)
        await driver.close()

        expected = [
            (event, operation)
            for operation in ("create", "expand", "seal", "delete")
            for event in ("begun", "published")
        ]
        assert events(tmp_path / "journal") == expected

    async def test_line_contains_job_fence_operation_volume_process_and_time(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        grant = attempt(3, 4)
        await driver.create(VOLUME, MIB, grant)

        line = lines(tmp_path / "journal")[-1]
        assert line.pop("at") > 0
        assert line.pop("pid") > 0
        assert line == {
            "event": "published",
            "operation": "create",
            "volume_id": str(VOLUME),
            "job_id": str(grant.job_id),
            "fence": [3, 4],
            "size": MIB,
        }

    async def test_line_of_a_snapshot_operation_names_the_snapshot_and_the_affected_volume(
        self, tmp_path: Path
    ) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        await driver.create(VOLUME, MIB, attempt())
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())
        await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt())
        await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, 2 * MIB, attempt())
        await driver.seal_snapshot(VOLUME, SNAPSHOT, attempt())
        await driver.delete_snapshot(VOLUME, SNAPSHOT, attempt())

        published = [line for line in lines(tmp_path / "journal")[2:] if line["event"] == "published"]
        assert {line["snapshot_id"] for line in published} == {str(SNAPSHOT)}
        assert [(line["operation"], line["volume_id"], line.get("size")) for line in published] == [
            ("take_snapshot", str(VOLUME), None),
            ("restore_snapshot", str(VOLUME), None),
            ("clone_snapshot", str(CLONE), 2 * MIB),
            ("seal_snapshot", str(VOLUME), None),
            ("delete_snapshot", str(VOLUME), None),
        ]

    async def test_published_line_is_written_under_the_inner_drivers_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver = faulty(f"journal={tmp_path}/journal", inner=f"file:{tmp_path}/volumes")
        journaled: list[tuple[object, object]] = []

        def read_journal(*_: object) -> None:
            with (tmp_path / "volumes/.fences" / str(VOLUME)).open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journaled.extend(events(tmp_path / "journal"))

        grant = attempt()
        monkeypatch.setattr(grant, "on_published", read_journal)
        await driver.create(VOLUME, MIB, grant)
        await driver.close()

        assert journaled == [("begun", "create"), ("published", "create")]

    async def test_stale_attempt_is_journaled_as_refused(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        await driver.seal(VOLUME, attempt(2))
        with pytest.raises(FenceRefused):
            await driver.create(VOLUME, MIB, attempt(1))

        assert events(tmp_path / "journal")[2:] == [("begun", "create"), ("refused", "create")]

    async def test_stopped_attempt_is_journaled_as_stopped(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        grant = attempt()
        grant.stop(StopReason.CANCELLED)
        with pytest.raises(Stopped):
            await driver.create(VOLUME, MIB, grant)

        assert events(tmp_path / "journal")[1:] == [("stopped", "create")]

    async def test_failure_is_journaled_with_its_code(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal&fail=create:storage-full")
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        begun, failed = lines(tmp_path / "journal")
        assert (begun["event"], failed["event"], failed["code"]) == ("begun", "failed", "storage-full")

    async def test_two_drivers_append_to_one_journal(self, tmp_path: Path) -> None:
        for _ in range(2):
            driver = faulty(f"journal={tmp_path}/journal")
            await driver.create(VOLUME, MIB, attempt())
            await driver.close()

        assert len(lines(tmp_path / "journal")) == 4

    def test_journal_that_cannot_be_opened_is_a_configuration_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="journal"):
            faulty(f"journal={tmp_path}/absent/journal")


class TestWaiting:
    async def test_delayed_work_ends_when_it_is_stopped(self, tmp_path: Path) -> None:
        driver = faulty(f"delay_ms=3600000&journal={tmp_path}/journal")
        grant = attempt()
        creating = asyncio.create_task(driver.create(VOLUME, MIB, grant))
        await begun(tmp_path / "journal")
        grant.stop(StopReason.SHUTDOWN)

        with pytest.raises(Stopped):
            await asyncio.wait_for(creating, 10)
        assert await driver.measure([VOLUME]) == {}

    async def test_thousand_delayed_operations_overlap(self, tmp_path: Path) -> None:
        driver = faulty(f"delay_ms=3600000&journal={tmp_path}/journal", inner="null:")
        grants = [attempt() for _ in range(1000)]
        expanding = asyncio.gather(*(driver.expand(uuid4(), MIB, grant) for grant in grants), return_exceptions=True)
        await begun(tmp_path / "journal", count=1000)
        for grant in grants:
            grant.stop(StopReason.SHUTDOWN)

        assert {type(outcome) for outcome in await expanding} == {Stopped}

    async def test_work_waits_while_the_gate_file_exists(self, tmp_path: Path) -> None:
        gate, journal = tmp_path / "gate", tmp_path / "journal"
        gate.touch()
        driver = faulty(f"gate={gate}&journal={journal}")
        creating = asyncio.create_task(driver.create(VOLUME, MIB, attempt()))
        await begun(journal)
        assert events(journal) == [("begun", "create")]
        gate.unlink()

        assert await asyncio.wait_for(creating, 10) == MIB

    async def test_work_waiting_at_the_gate_ends_when_it_is_stopped(self, tmp_path: Path) -> None:
        gate, journal = tmp_path / "gate", tmp_path / "journal"
        gate.touch()
        driver = faulty(f"gate={gate}&journal={journal}")
        grant = attempt()
        creating = asyncio.create_task(driver.create(VOLUME, MIB, grant))
        await begun(journal)
        grant.stop(StopReason.CANCELLED)

        with pytest.raises(Stopped):
            await asyncio.wait_for(creating, 10)

    async def test_seals_do_not_wait_at_the_gate(self, tmp_path: Path) -> None:
        (tmp_path / "gate").touch()
        driver = faulty(f"gate={tmp_path}/gate&delay_ms=3600000")
        grant = attempt()
        grant.stop(StopReason.CANCELLED)

        assert await asyncio.wait_for(driver.seal(VOLUME, grant), 10) is None
        assert await asyncio.wait_for(driver.seal_snapshot(VOLUME, SNAPSHOT, grant), 10) is None

    async def test_snapshot_operations_wait_at_the_gate(self, tmp_path: Path) -> None:
        (tmp_path / "gate").touch()
        scenario = Scenario(faulty(f"gate={tmp_path}/gate&journal={tmp_path}/journal"))
        for operation in ("take_snapshot", "restore_snapshot", "clone_snapshot", "delete_snapshot"):
            (tmp_path / "journal").write_text("")
            grant = attempt()
            waiting = asyncio.ensure_future(scenario.perform(operation, grant))
            await begun(tmp_path / "journal")
            grant.stop(StopReason.CANCELLED)
            with pytest.raises(Stopped):
                await asyncio.wait_for(waiting, 10)
            assert events(tmp_path / "journal") == [("begun", operation), ("stopped", operation)]

    @pytest.mark.parametrize("delay", ["soon", "-1", "1.5", ""])
    def test_delay_that_is_not_a_number_is_a_configuration_error(self, delay: str) -> None:
        with pytest.raises(ConfigurationError, match="delay_ms"):
            faulty(f"delay_ms={delay}")

    def test_hang_requires_a_driver_that_works_in_threads(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="hang="):
            faulty(f"hang={tmp_path}/hang", inner="memory:")

    async def test_hang_blocks_the_thread_without_progress(self, tmp_path: Path) -> None:
        hang, journal = tmp_path / "hang", tmp_path / "journal"
        driver = opened(f"faulty+file:{tmp_path}/volumes?hang={hang}&journal={journal}", 2)
        hang.write_text(str(VOLUME))
        moments = iter(range(100))
        grant = Grant(uuid4(), Fence(1, 0), 1000.0, clock=lambda: float(next(moments)))
        progressed = grant.state.progressed_at
        creating = asyncio.create_task(driver.create(VOLUME, MIB, grant))
        async with asyncio.timeout(10):
            while ("hanging", "create") not in events(journal):
                await asyncio.sleep(0.001)
        assert await driver.create(uuid4(), MIB, attempt()) == MIB, "an operation on another volume hangs"
        grant.stop(StopReason.LEASE_LOST)
        assert (creating.done(), grant.state.progressed_at) == (False, progressed)
        hang.unlink()

        with pytest.raises(Stopped):
            await asyncio.wait_for(creating, 10)
        assert await driver.measure([VOLUME]) == {}
        await driver.close()
