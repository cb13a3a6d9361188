"""The wrapper that other tests trust: it must fail, wait and witness exactly as told."""

import asyncio
import fcntl
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.errors import ConfigurationError
from domain.storage.backends import open_driver
from domain.storage.driver import (
    Fence,
    FenceRefused,
    Grant,
    Stopped,
    StopReason,
    StorageDriver,
    StorageFull,
    TransientStorageError,
)
from domain.storage.null import NullDriver
from domain.storage.witness import WatchedGrant, Witness

MIB = 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")


def attempt(version: int = 1, rings: int = 1) -> Grant:
    return Grant(uuid4(), Fence(version, rings), deadline=1.0, clock=lambda: 0.0)


def faulty(options: str, inner: str = "memory:") -> StorageDriver:
    return open_driver(f"faulty+{inner}?{options}", threads=2)


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def events(journal: Path) -> list[tuple[object, object]]:
    return [(line["event"], line["operation"]) for line in lines(journal)]


async def begun(journal: Path) -> None:
    """Let the other tasks run until one has begun."""
    async with asyncio.timeout(10):
        while not lines(journal):
            await asyncio.sleep(0)


def test_without_options_nothing_stands_in_between() -> None:
    assert isinstance(open_driver("faulty+null:", threads=1), NullDriver)


class TestJournal:
    async def test_each_operation_is_written_down_as_begun_and_published(self, tmp_path: Path) -> None:
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

    async def test_a_line_says_who_did_what_to_which_volume_and_when(self, tmp_path: Path) -> None:
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

    async def test_publishing_is_written_down_under_the_inner_drivers_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver = faulty(f"journal={tmp_path}/journal", inner=f"file:{tmp_path}/volumes")
        seen: list[tuple[object, object]] = []

        def look(*_: object) -> None:
            with (tmp_path / "volumes/.fences" / str(VOLUME)).open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.extend(events(tmp_path / "journal"))

        grant = attempt()
        monkeypatch.setattr(grant, "published", look)
        await driver.create(VOLUME, MIB, grant)
        await driver.close()

        assert seen == [("begun", "create"), ("published", "create")]

    async def test_a_late_attempt_is_written_down_as_refused(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        await driver.seal(VOLUME, attempt(2))
        with pytest.raises(FenceRefused):
            await driver.create(VOLUME, MIB, attempt(1))

        assert events(tmp_path / "journal")[2:] == [("begun", "create"), ("refused", "create")]

    async def test_a_stopped_attempt_is_written_down_as_stopped(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal")
        grant = attempt()
        grant.stop(StopReason.CANCELLED)
        with pytest.raises(Stopped):
            await driver.create(VOLUME, MIB, grant)

        assert events(tmp_path / "journal")[1:] == [("stopped", "create")]

    async def test_a_failure_is_written_down_with_its_code(self, tmp_path: Path) -> None:
        driver = faulty(f"journal={tmp_path}/journal&fail=create:storage-full")
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        begun, failed = lines(tmp_path / "journal")
        assert (begun["event"], failed["event"], failed["code"]) == ("begun", "failed", "storage-full")

    async def test_two_processes_worth_of_drivers_append_to_one_journal(self, tmp_path: Path) -> None:
        for _ in range(2):
            driver = faulty(f"journal={tmp_path}/journal")
            await driver.create(VOLUME, MIB, attempt())
            await driver.close()

        assert len(lines(tmp_path / "journal")) == 4

    def test_a_journal_that_cannot_be_written_is_a_configuration_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="journal"):
            faulty(f"journal={tmp_path}/absent/journal")


class TestWaiting:
    async def test_slow_work_ends_when_it_is_stopped(self, tmp_path: Path) -> None:
        driver = faulty(f"delay_ms=3600000&journal={tmp_path}/journal")
        grant = attempt()
        creating = asyncio.create_task(driver.create(VOLUME, MIB, grant))
        await begun(tmp_path / "journal")
        grant.stop(StopReason.SHUTDOWN)

        with pytest.raises(Stopped):
            await asyncio.wait_for(creating, 10)
        assert await driver.measure(VOLUME) is None

    async def test_a_thousand_slow_operations_overlap(self, tmp_path: Path) -> None:
        driver = faulty(f"delay_ms=20&journal={tmp_path}/journal", inner="null:")
        await asyncio.gather(*(driver.expand(uuid4(), MIB, attempt()) for _ in range(1000)))

        assert events(tmp_path / "journal")[:1000] == [("begun", "expand")] * 1000

    async def test_work_is_held_as_long_as_the_gate_file_exists(self, tmp_path: Path) -> None:
        gate, journal = tmp_path / "gate", tmp_path / "journal"
        gate.touch()
        driver = faulty(f"gate={gate}&journal={journal}")
        creating = asyncio.create_task(driver.create(VOLUME, MIB, attempt()))
        await begun(journal)
        assert events(journal) == [("begun", "create")]
        gate.unlink()

        assert await asyncio.wait_for(creating, 10) == MIB

    async def test_work_held_at_the_gate_ends_when_it_is_stopped(self, tmp_path: Path) -> None:
        gate, journal = tmp_path / "gate", tmp_path / "journal"
        gate.touch()
        driver = faulty(f"gate={gate}&journal={journal}")
        grant = attempt()
        creating = asyncio.create_task(driver.create(VOLUME, MIB, grant))
        await begun(journal)
        grant.stop(StopReason.CANCELLED)

        with pytest.raises(Stopped):
            await asyncio.wait_for(creating, 10)

    async def test_seal_passes_the_gate(self, tmp_path: Path) -> None:
        (tmp_path / "gate").touch()
        driver = faulty(f"gate={tmp_path}/gate&delay_ms=3600000")
        grant = attempt()
        grant.stop(StopReason.CANCELLED)

        assert await asyncio.wait_for(driver.seal(VOLUME, grant), 10) is None

    @pytest.mark.parametrize("delay", ["soon", "-1", "1.5", ""])
    def test_a_delay_that_is_no_number_is_a_configuration_error(self, delay: str) -> None:
        with pytest.raises(ConfigurationError, match="delay_ms"):
            faulty(f"delay_ms={delay}")


class TestFailing:
    async def test_only_the_named_operation_fails_and_publishes_nothing(self) -> None:
        driver = faulty("fail=expand:storage-full")
        await driver.create(VOLUME, MIB, attempt())

        with pytest.raises(StorageFull):
            await driver.expand(VOLUME, 2 * MIB, attempt(2))
        assert await driver.seal(VOLUME, attempt(1)) == MIB

    async def test_a_star_fails_every_operation(self) -> None:
        driver = faulty("fail=*:storage-unavailable")
        for work in (
            driver.create(VOLUME, MIB, attempt()),
            driver.expand(VOLUME, MIB, attempt()),
            driver.delete(VOLUME, attempt()),
            driver.seal(VOLUME, attempt()),
        ):
            with pytest.raises(TransientStorageError):
                await work

    async def test_a_counted_fault_is_used_up_and_gives_way_to_the_next(self) -> None:
        driver = faulty("fail=create:storage-unavailable*2,create:storage-full*1")
        for kind in (TransientStorageError, TransientStorageError, StorageFull):
            with pytest.raises(kind):
                await driver.create(VOLUME, MIB, attempt())

        assert await driver.create(VOLUME, MIB, attempt()) == MIB

    async def test_an_answer_can_get_lost_after_the_effect(self, tmp_path: Path) -> None:
        driver = faulty(f"fail_after=create:storage-unavailable*1&journal={tmp_path}/journal")
        with pytest.raises(TransientStorageError):
            await driver.create(VOLUME, MIB, attempt())

        assert [event for event, _ in events(tmp_path / "journal")] == ["begun", "published", "failed"]
        assert await driver.create(VOLUME, 2 * MIB, attempt(1, 2)) == MIB

    async def test_faults_in_a_file_come_and_go_while_the_driver_runs(self, tmp_path: Path) -> None:
        spec = tmp_path / "faults"
        driver = faulty(f"fail=@{spec}")
        assert await driver.create(VOLUME, MIB, attempt()) == MIB
        spec.write_text("create:storage-unavailable\n\nexpand:storage-full\n")
        with pytest.raises(StorageFull):
            await driver.expand(VOLUME, 2 * MIB, attempt())
        spec.unlink()

        assert await driver.expand(VOLUME, 2 * MIB, attempt()) == 2 * MIB

    async def test_a_fault_in_a_file_can_be_meant_for_one_volume(self, tmp_path: Path) -> None:
        (tmp_path / "faults").write_text(f"create:storage-full {VOLUME}\n")
        driver = faulty(f"fail=@{tmp_path}/faults")

        assert await driver.create(uuid4(), MIB, attempt()) == MIB
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

    async def test_a_counted_fault_in_a_file_is_counted_over_its_readings(self, tmp_path: Path) -> None:
        (tmp_path / "faults").write_text("create:storage-full*1\n")
        driver = faulty(f"fail=@{tmp_path}/faults")
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        assert await driver.create(VOLUME, MIB, attempt()) == MIB

    @pytest.mark.parametrize("option", ["fail", "fail_after"])
    @pytest.mark.parametrize(
        "spec",
        ["storage-full", "move:storage-full", "create:no-such-code", "create:storage-full*0", "create:"],
    )
    def test_a_fault_that_cannot_be_read_is_a_configuration_error(self, option: str, spec: str) -> None:
        with pytest.raises(ConfigurationError):
            faulty(f"{option}={spec}")

    async def test_a_file_that_cannot_be_read_as_faults_is_a_configuration_error(self, tmp_path: Path) -> None:
        (tmp_path / "faults").write_text("nonsense")
        driver = faulty(f"fail=@{tmp_path}/faults")

        with pytest.raises(ConfigurationError, match="nonsense"):
            await driver.create(VOLUME, MIB, attempt())


class TestWatchedGrant:
    def watched(self, original: Grant) -> WatchedGrant:
        return WatchedGrant(original, Witness(None, "create", VOLUME, original, None))

    def test_stopping_the_original_stops_the_watched_one(self) -> None:
        original = attempt()
        watched = self.watched(original)
        original.stop(StopReason.CANCELLED)

        with pytest.raises(Stopped):
            watched.check()
        assert watched.stop_reason is StopReason.CANCELLED

    def test_stopping_the_watched_one_stops_the_original(self) -> None:
        original = attempt()
        self.watched(original).stop(StopReason.SHUTDOWN)

        with pytest.raises(Stopped):
            original.check()

    def test_both_share_one_lease(self) -> None:
        now = [0.0]
        original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
        watched = self.watched(original)
        now[0] = 6.0
        with pytest.raises(Stopped):
            watched.check()
        original.extend(10.0)
        watched.check()
        watched.extend(20.0)

        assert original.deadline == 20.0

    def test_progress_is_seen_on_the_original(self) -> None:
        now = [0.0]
        original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
        now[0] = 3.0
        self.watched(original).check()

        assert original.progressed_at == 3.0
