"""What the contract tests of all storage drivers share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.storage.driver import StorageDriver
from tests.unit.storage_scene import KEEPING, opened


@pytest.fixture(params=KEEPING)
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    """Each driver that keeps bytes, in turn."""
    driver = opened(request.param, tmp_path)
    yield driver
    await driver.close()
