"""A volume with a snapshot on any driver, and every operation on them."""

from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest

from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant
from domain.storage.driver import StorageDriver
from domain.storage.file.driver import FileDriver

MIB = 1024 * 1024
STORING_DRIVERS = ["file:{}/volumes", "memory:", "faulty+memory:?journal={}/journal"]
SEALS = ["seal", "seal_snapshot"]
VOLUME_CHANGES = ["create", "expand", "delete", "restore_snapshot"]
SNAPSHOT_CHANGES = ["take_snapshot", "delete_snapshot"]
CHANGES = [*VOLUME_CHANGES, *SNAPSHOT_CHANGES, "clone_snapshot"]
every_driver = pytest.mark.parametrize("driver", [*STORING_DRIVERS, "null:"], indirect=True)
every_change = pytest.mark.parametrize("operation", CHANGES)
every_operation = pytest.mark.parametrize("operation", [*CHANGES, *SEALS])


class RecordingGrant(Grant):
    """A grant that records what was published with it."""

    def __init__(self, version: int = 1, epoch: int = 1, *, deadline: float = 10.0, now: float = 0.0) -> None:
        super().__init__(uuid4(), Fence(version, epoch), deadline, clock=lambda: now)
        self.published: list[tuple[str, UUID]] = []

    def on_published(self, operation: str, subject_id: UUID) -> None:
        self.published.append((operation, subject_id))


class Scenario:
    """One volume of 1 MiB, one snapshot of it, and the id of a clone that does not exist yet."""

    UNTOUCHED = (MIB, MIB, None)

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver
        self.volume, self.snapshot, self.clone = uuid4(), uuid4(), uuid4()

    async def set_up(self) -> None:
        await self.driver.create(self.volume, MIB, RecordingGrant())
        await self.driver.take_snapshot(self.volume, self.snapshot, RecordingGrant())

    def subject(self, operation: str) -> UUID:
        """Return the id of the subject whose fence the operation checks."""
        if operation == "clone_snapshot":
            return self.clone
        return self.snapshot if operation in (*SNAPSHOT_CHANGES, "seal_snapshot") else self.volume

    async def perform(self, operation: str, grant: Grant) -> object:
        ids = [self.volume]
        ids += [self.snapshot] if operation.endswith("_snapshot") else []
        ids += [self.clone] if operation == "clone_snapshot" else []
        sized = [3 * MIB] if operation in ("create", "expand", "clone_snapshot") else []
        return await getattr(self.driver, operation)(*ids, *sized, grant)

    async def seal(self, operation: str, grant: Grant) -> None:
        """Raise the fence that the operation checks."""
        if self.subject(operation) == self.snapshot:
            await self.driver.seal_snapshot(self.volume, self.snapshot, grant)
        else:
            await self.driver.seal(self.subject(operation), grant)

    async def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Return the sizes of volume, snapshot and clone; sealing the snapshot excludes earlier attempts."""
        snapshot = await self.driver.seal_snapshot(self.volume, self.snapshot, RecordingGrant(99))
        return await size_of(self.driver, self.volume), snapshot, await size_of(self.driver, self.clone)


def open_in(folder: Path, url: str) -> StorageDriver:
    return opened(url.replace("{}", str(folder)), threads=8)


def opened(url: str, threads: int = 1) -> StorageDriver:
    """Open a driver, and make its place if it has one."""
    driver = open_driver(url, threads)
    if driver.place is not None:
        cast("FileDriver", driver).prepare()
    return driver


async def size_of(driver: StorageDriver, volume: UUID) -> int | None:
    usage = (await driver.measure([volume])).get(volume)
    return usage.size if usage else None
