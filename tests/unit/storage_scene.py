"""A volume with a snapshot on any driver, and every operation that can be done to it."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant
from domain.storage.driver import StorageDriver

MIB = 1024 * 1024
KEEPING = ["file:{}/volumes", "memory:", "faulty+memory:?journal={}/journal"]
SEALS = ["seal", "seal_snapshot"]
VOLUME_CHANGES = ["create", "expand", "delete", "restore_snapshot"]
SNAPSHOT_CHANGES = ["take_snapshot", "delete_snapshot"]
CHANGES = [*VOLUME_CHANGES, *SNAPSHOT_CHANGES, "clone_snapshot"]
every_driver = pytest.mark.parametrize("driver", [*KEEPING, "null:"], indirect=True)
every_change = pytest.mark.parametrize("operation", CHANGES)
every_operation = pytest.mark.parametrize("operation", [*CHANGES, *SEALS])


class HeardGrant(Grant):
    """A grant that remembers what was published with it."""

    def __init__(self, version: int = 1, epoch: int = 1, *, deadline: float = 10.0, now: float = 0.0) -> None:
        super().__init__(uuid4(), Fence(version, epoch), deadline, clock=lambda: now)
        self.heard: list[tuple[str, UUID]] = []

    def publishing(self, operation: str, subject_id: UUID) -> None:
        self.heard.append((operation, subject_id))


class Scene:
    """One volume of 1 MiB, one snapshot of it, and the id of a clone that is yet to be made."""

    UNTOUCHED = (MIB, MIB, None)

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver
        self.volume, self.snapshot, self.clone = uuid4(), uuid4(), uuid4()

    async def set(self) -> None:
        await self.driver.create(self.volume, MIB, HeardGrant())
        await self.driver.take_snapshot(self.volume, self.snapshot, HeardGrant())

    def subject(self, operation: str) -> UUID:
        """Whose fence the operation heeds."""
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
        """Raise the fence that the operation heeds."""
        if self.subject(operation) == self.snapshot:
            await self.driver.seal_snapshot(self.volume, self.snapshot, grant)
        else:
            await self.driver.seal(self.subject(operation), grant)

    async def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Measure volume, snapshot and clone, shutting out whoever might still come for the snapshot."""
        snapshot = await self.driver.seal_snapshot(self.volume, self.snapshot, HeardGrant(99))
        return await size_of(self.driver, self.volume), snapshot, await size_of(self.driver, self.clone)


def opened(url: str, folder: Path) -> StorageDriver:
    return open_driver(url.replace("{}", str(folder)), threads=8)


async def size_of(driver: StorageDriver, volume: UUID) -> int | None:
    usage = (await driver.measure([volume])).get(volume)
    return usage.size if usage else None
