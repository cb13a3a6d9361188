"""The example storage driver: installed with pip, found by its entry point, and held to the contract of all drivers."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import copytree

import pytest

from domain.storage.backends import open_driver
from domain.storage.driver import StorageDriver
from tests.unit import test_storage_contract as volumes
from tests.unit import test_storage_contract_fences as fences
from tests.unit import test_storage_contract_inventory as inventory
from tests.unit import test_storage_contract_isolation as isolation
from tests.unit import test_storage_contract_snapshots as snapshots

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "storage_driver"

_IS_FIXTURE = type(fences.scenario)

# pytest collects the contract tests here once more; each gets its driver from the fixture `driver` below.
for _module in (volumes, fences, inventory, isolation, snapshots):
    globals().update(
        {
            name: value
            for name, value in vars(_module).items()
            if (name.startswith("test_") and {"driver", "scenario"} & set(value.__code__.co_varnames))
            or (isinstance(value, _IS_FIXTURE) and name == "scenario")
        }
    )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example with pip, into a directory of its own and without a network."""
    source = copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "driver")
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


@pytest.fixture
async def driver(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StorageDriver]:
    """The example driver, whichever drivers a test names: each test is run with it."""
    monkeypatch.syspath_prepend(installed)
    driver = open_driver(f"sqlite:{tmp_path}/volumes.db", threads=8)
    yield driver
    await driver.close()


async def test_a_driver_that_is_installed_as_a_package_is_found_by_its_scheme(driver: StorageDriver) -> None:
    assert type(driver).__module__ == "cistern_sqlite"


def test_a_driver_that_is_not_installed_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unknown driver 'sqlite'"):
        open_driver(f"sqlite:{tmp_path}/volumes.db", threads=1)
