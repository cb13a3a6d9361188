"""How the file driver deletes a volume: to the trash in one step, then from the disk."""

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.context import Fence, Grant
from domain.storage.errors import TransientStorageError
from domain.storage.file.driver import FileDriver

MIB = 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")


def attempt(version: int = 1, epoch: int = 1) -> Grant:
    return Grant(uuid4(), Fence(version, epoch), deadline=1.0, clock=lambda: 0.0)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver(tmp_path / "volumes", threads=8)
    driver.prepare()
    yield driver
    await driver.close()


def data(driver: FileDriver) -> Path:
    return Path(driver.path(VOLUME))


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


async def test_delete_removes_the_volume_with_all_its_contents(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    (data(driver).parent / "snapshots" / "one").mkdir(parents=True)

    await driver.delete(VOLUME, attempt(2))

    assert not data(driver).parent.exists()
    assert list((driver.root / ".trash").iterdir()) == []


async def test_delete_removes_only_this_volumes_older_trash(driver: FileDriver) -> None:
    mine, other = driver.root / ".trash" / f"{VOLUME}.1-1", driver.root / ".trash" / f"{uuid4()}.1-1"
    for leftover in (mine, other):
        (leftover / "snapshots").mkdir(parents=True)

    await driver.delete(VOLUME, attempt(2))

    assert list((driver.root / ".trash").iterdir()) == [other]


async def test_volume_is_deleted_even_if_its_trash_cannot_be_removed(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, MIB, attempt())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", failing(errno.EIO))
        with pytest.raises(TransientStorageError):
            await driver.delete(VOLUME, attempt(2))

    assert await driver.measure([VOLUME]) == {}
    await driver.delete(VOLUME, attempt(2, 2))
    assert list((driver.root / ".trash").iterdir()) == []


async def test_delete_fails_if_the_trash_directory_is_missing(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    (driver.root / ".trash").rmdir()

    with pytest.raises(TransientStorageError):
        await driver.delete(VOLUME, attempt(2))

    assert await driver.measure([VOLUME]) != {}
