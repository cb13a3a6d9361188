"""File drivers, empty or with a snapshot; the paths of their files; and failing system calls."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn
from uuid import UUID, uuid4

from domain.storage.context import Fence, Grant
from domain.storage.file.driver import FileDriver
from domain.storage.file.superblock import filesystem_size

MIB = 1024 * 1024
VOLUME, SNAPSHOT, CLONE = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "123")
OLD, NEW = b"old".ljust(MIB, b"o"), b"new".ljust(MIB, b"n")
ARGUMENTS: dict[str, tuple[UUID | int, ...]] = {
    "create": (VOLUME, MIB),
    "expand": (VOLUME, MIB),
    "delete": (VOLUME,),
    "seal": (VOLUME,),
    "take_snapshot": (VOLUME, SNAPSHOT),
    "restore_snapshot": (VOLUME, SNAPSHOT),
    "clone_snapshot": (VOLUME, SNAPSHOT, CLONE, MIB),
    "delete_snapshot": (VOLUME, SNAPSHOT),
    "seal_snapshot": (VOLUME, SNAPSHOT),
}


class CallbackGrant(Grant):
    """A grant that calls a function when it is published."""

    def __init__(self, version: int, epoch: int, callback: Callable[[], object]) -> None:
        super().__init__(uuid4(), Fence(version, epoch), deadline=1.0, clock=lambda: 0.0)
        self._callback = callback

    def on_published(self, operation: str, subject_id: UUID) -> None:
        self._callback()


def attempt(version: int = 1, epoch: int = 1, callback: Callable[[], object] = lambda: None) -> Grant:
    return CallbackGrant(version, epoch, callback)


# A test file makes one of these two generators its fixture. They are not fixtures here, because ruff reports an
# imported fixture as unused.


async def empty_driver(tmp_path: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver(tmp_path / "volumes", threads=8)
    driver.prepare()
    yield driver
    await driver.close()


async def snapshot_driver(tmp_path: Path) -> AsyncIterator[FileDriver]:
    """A driver with a volume of OLD bytes and a snapshot of it."""
    driver = FileDriver(tmp_path / "volumes", threads=2)
    driver.prepare()
    await driver.create(VOLUME, MIB, attempt())
    data(driver).write_bytes(OLD)
    await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
    yield driver
    await driver.close()


async def perform(driver: FileDriver, operation: str, grant: Grant) -> None:
    await getattr(driver, operation)(*ARGUMENTS[operation], grant)


def data(driver: FileDriver, volume: UUID = VOLUME) -> Path:
    return Path(driver.path(volume))


def snapshot(driver: FileDriver, snapshot: UUID = SNAPSHOT) -> Path:
    return data(driver).parent / "snapshots" / str(snapshot)


def files(driver: FileDriver) -> set[str]:
    """Return all files except fence records and the identity."""
    paths = (path for path in driver.root.glob("[!.]*/**/*") if path.is_file())
    return {str(path.relative_to(driver.root)) for path in paths}


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def stored_size(driver: FileDriver, filesystem: str, volume_id: UUID = VOLUME) -> int | None:
    """Return the size in bytes that the file system of the volume has, None if it has no such one."""
    with data(driver, volume_id).open("rb") as file:
        return filesystem_size(file.fileno(), filesystem)
