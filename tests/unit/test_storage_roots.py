"""The root of a file backend is used only if nobody else may write to it."""

import os
from pathlib import Path

import pytest

from domain.storage.errors import BackendUnavailable
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import MIB, VOLUME, attempt, snapshot_driver

CONSUMER = 12345
driver = pytest.fixture(snapshot_driver)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")


@pytest.mark.parametrize(
    ("mode", "why"), [(0o777, r"everybody may write to it \(mode 0777\)"), (0o757, "everybody may write to it")]
)
async def test_root_that_everybody_may_write_to_is_refused(driver: FileDriver, mode: int, why: str) -> None:
    driver.root.chmod(mode)

    with pytest.raises(BackendUnavailable, match=f"volumes is not safe to use: {why}"):
        await driver.identity()
    with pytest.raises(BackendUnavailable, match=f"volumes is not safe to use: {why}"):
        await driver.initialize("mine")


@needs_root
async def test_root_that_belongs_to_another_user_is_refused(driver: FileDriver) -> None:
    os.chown(driver.root, CONSUMER, 0)

    with pytest.raises(BackendUnavailable, match=f"it belongs to the user {CONSUMER}"):
        await driver.identity()


@needs_root
async def test_root_that_a_foreign_group_may_write_to_is_refused(driver: FileDriver) -> None:
    os.chown(driver.root, 0, CONSUMER)
    driver.root.chmod(0o775)

    with pytest.raises(BackendUnavailable, match=f"the group {CONSUMER} may write to it"):
        await driver.identity()


async def test_root_that_the_workers_group_may_write_to_is_used(driver: FileDriver) -> None:
    os.chown(driver.root, -1, os.getegid())
    driver.root.chmod(0o775)

    assert await driver.identity() == "{}"


async def test_root_that_is_reached_by_a_link_is_used(driver: FileDriver, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(driver.root)
    linked = FileDriver(tmp_path / "link", threads=1)
    linked.prepare()

    assert await linked.expand(VOLUME, 2 * MIB, attempt(3)) == 2 * MIB
    await linked.close()


@needs_root
async def test_umask_of_the_worker_lets_nobody_else_write(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        driver = FileDriver(tmp_path / "open", threads=1)
        driver.prepare()
        await driver.create(VOLUME, MIB, attempt())
    finally:
        os.umask(before)
    await driver.close()

    assert [path for path in (driver.root, *driver.root.rglob("*")) if path.stat().st_mode & 0o002] == []
