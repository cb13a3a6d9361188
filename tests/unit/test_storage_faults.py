"""Which operations the fault injector fails, for each form of its options."""

import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.errors import ConfigurationError
from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant
from domain.storage.driver import StorageDriver
from domain.storage.errors import SnapshotMissing, StorageFull, TransientStorageError

MIB = 1024 * 1024
VOLUME, SNAPSHOT = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "12")


def attempt(version: int = 1, epoch: int = 1) -> Grant:
    return Grant(uuid4(), Fence(version, epoch), deadline=1.0, clock=lambda: 0.0)


def faulty(options: str, inner: str = "memory:") -> StorageDriver:
    return open_driver(f"faulty+{inner}?{options}", threads=2)


async def test_only_the_named_operation_fails_and_publishes_nothing() -> None:
    driver = faulty("fail=expand:storage-full")
    await driver.create(VOLUME, MIB, attempt())

    with pytest.raises(StorageFull):
        await driver.expand(VOLUME, 2 * MIB, attempt(2))
    assert await driver.seal(VOLUME, attempt(1)) == MIB


async def test_star_fails_every_operation() -> None:
    driver = faulty("fail=*:storage-unavailable")
    for work in (
        driver.create(VOLUME, MIB, attempt()),
        driver.expand(VOLUME, MIB, attempt()),
        driver.delete(VOLUME, attempt()),
        driver.seal(VOLUME, attempt()),
        driver.take_snapshot(VOLUME, SNAPSHOT, attempt()),
        driver.restore_snapshot(VOLUME, SNAPSHOT, attempt()),
        driver.clone_snapshot(VOLUME, SNAPSHOT, uuid4(), MIB, attempt()),
        driver.delete_snapshot(VOLUME, SNAPSHOT, attempt()),
        driver.seal_snapshot(VOLUME, SNAPSHOT, attempt()),
    ):
        with pytest.raises(TransientStorageError):
            await work


async def test_counted_fault_is_used_up_before_the_next_one_applies() -> None:
    driver = faulty("fail=create:storage-unavailable*2,create:storage-full*1")
    for kind in (TransientStorageError, TransientStorageError, StorageFull):
        with pytest.raises(kind):
            await driver.create(VOLUME, MIB, attempt())

    assert await driver.create(VOLUME, MIB, attempt()) == MIB


async def test_fail_after_loses_the_result_after_the_effect(tmp_path: Path) -> None:
    driver = faulty(f"fail_after=create:storage-unavailable*1&journal={tmp_path}/journal")
    with pytest.raises(TransientStorageError):
        await driver.create(VOLUME, MIB, attempt())

    lines = (tmp_path / "journal").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["begun", "published", "failed"]
    assert await driver.create(VOLUME, 2 * MIB, attempt(1, 2)) == MIB


async def test_faults_in_a_file_can_change_while_the_driver_runs(tmp_path: Path) -> None:
    spec = tmp_path / "faults"
    driver = faulty(f"fail=@{spec}")
    assert await driver.create(VOLUME, MIB, attempt()) == MIB
    spec.write_text("create:storage-unavailable\n\nexpand:storage-full\n")
    with pytest.raises(StorageFull):
        await driver.expand(VOLUME, 2 * MIB, attempt())
    spec.unlink()

    assert await driver.expand(VOLUME, 2 * MIB, attempt()) == 2 * MIB


async def test_fault_in_a_file_can_apply_to_one_volume(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text(f"create:storage-full {VOLUME}\n")
    driver = faulty(f"fail=@{tmp_path}/faults")

    assert await driver.create(uuid4(), MIB, attempt()) == MIB
    with pytest.raises(StorageFull):
        await driver.create(VOLUME, MIB, attempt())


async def test_counted_fault_in_a_file_is_counted_across_reads(tmp_path: Path) -> None:
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
def test_malformed_fault_is_a_configuration_error(option: str, spec: str) -> None:
    with pytest.raises(ConfigurationError):
        faulty(f"{option}={spec}")


async def test_malformed_fault_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("nonsense")
    driver = faulty(f"fail=@{tmp_path}/faults")

    with pytest.raises(ConfigurationError, match="nonsense"):
        await driver.create(VOLUME, MIB, attempt())


async def test_fault_in_a_snapshot_operation_applies_to_that_operation_only() -> None:
    driver = faulty("fail=take_snapshot:storage-full*1,clone_snapshot:snapshot-missing")
    await driver.create(VOLUME, MIB, attempt())
    with pytest.raises(StorageFull):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())

    assert (await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())).size == MIB
    assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt()) == MIB
    with pytest.raises(SnapshotMissing):
        await driver.clone_snapshot(VOLUME, SNAPSHOT, uuid4(), MIB, attempt())


@pytest.mark.parametrize("subject", [VOLUME, SNAPSHOT])
async def test_fault_can_apply_to_the_snapshots_of_one_volume_or_to_one_snapshot(subject: UUID) -> None:
    driver = faulty(f"fail=delete_snapshot:storage-unavailable {subject}")

    await driver.delete_snapshot(uuid4(), uuid4(), attempt())
    with pytest.raises(TransientStorageError):
        await driver.delete_snapshot(VOLUME, SNAPSHOT, attempt())
