"""The storage error for each error of the operating system."""

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.errors import StorageError
from domain.storage.context import Fence, Grant
from domain.storage.errors import AccessDenied, SizeUnsupported, StorageFull, TransientStorageError, VolumeMissing
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


async def perform(driver: FileDriver, operation: str, grant: Grant) -> None:
    sized = (MIB,) if operation in ("create", "expand") else ()
    await getattr(driver, operation)(VOLUME, *sized, grant)


def data(driver: FileDriver) -> Path:
    return Path(driver.path(VOLUME))


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, SizeUnsupported),
        (errno.EINVAL, SizeUnsupported),
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.EIO, TransientStorageError),
        (errno.ESTALE, TransientStorageError),
    ],
)
@pytest.mark.parametrize("operation", ["create", "expand"])
async def test_each_system_error_becomes_its_storage_error(
    driver: FileDriver,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[StorageError],
    operation: str,
) -> None:
    await driver.create(VOLUME, 1, attempt())
    monkeypatch.setattr(os, "ftruncate", failing(number))

    with pytest.raises(kind, match=os.strerror(number)) as caught:
        await perform(driver, operation, attempt(2))

    assert type(caught.value) is kind


async def test_einval_from_another_call_than_resize_is_transient(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, 1, attempt())
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))

    with pytest.raises(TransientStorageError):
        await driver.expand(VOLUME, MIB, attempt(2))


async def test_size_beyond_the_systems_integer_range_is_unsupported(driver: FileDriver) -> None:
    with pytest.raises(SizeUnsupported):
        await driver.create(VOLUME, 2**70, attempt())


async def test_expanding_a_volume_whose_data_was_removed_fails(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    data(driver).unlink()

    with pytest.raises(VolumeMissing):
        await driver.expand(VOLUME, 2 * MIB, attempt(2))


async def test_root_that_disappears_is_not_created_again(driver: FileDriver) -> None:
    await driver.capacity()
    driver.root.rename(driver.root.with_name("unmounted"))

    with pytest.raises(TransientStorageError):
        await driver.create(VOLUME, MIB, attempt())

    assert not driver.root.exists()
