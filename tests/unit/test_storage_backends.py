"""Opening drivers from the setting, and the messages for URLs and drivers that cannot be used."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cistern_test_drivers.fault_injector import FaultInjector
from domain.errors import ConfigurationError
from domain.storage import backends
from domain.storage.backends import Backends, open_driver
from domain.storage.context import Fence, Grant
from domain.storage.driver import Capacity
from domain.storage.errors import BackendUnavailable, StorageFull
from domain.storage.file.driver import FileDriver
from domain.storage.file.folder import Folder
from tests.unit.storage_builders import opened

MIB = 1024 * 1024


def attempt() -> Grant:
    return Grant(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)


def test_backends_are_listed_by_name_and_scheme_in_the_order_of_the_setting(tmp_path: Path) -> None:
    urls = {"local": f"file:{tmp_path}/v", "bench": "null:", "slow": f"faulty+file:{tmp_path}/w?delay_ms=1"}
    opened = Backends.open(urls, threads=1)

    assert opened.names() == ["local", "bench", "slow"]
    assert [opened.scheme(name) for name in opened.names()] == ["file", "null", "faulty+file"]
    assert "local" in opened
    assert "remote" not in opened


def test_get_returns_the_same_driver_each_time() -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)

    assert opened.get("bench") is opened.get("bench")


def test_backend_of_other_processes_cannot_be_used() -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)

    with pytest.raises(BackendUnavailable, match="'tape' cannot be used: it is not among the CISTERN_BACKENDS"):
        opened.get("tape")


def test_get_refuses_a_driver_inside_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)
    monkeypatch.setattr(backends, "in_transaction", lambda: True)

    with pytest.raises(RuntimeError, match="storage work inside a transaction"):
        opened.get("bench")
    assert opened.names() == ["bench"]


async def test_close_closes_every_driver(tmp_path: Path) -> None:
    opened = Backends.open({name: f"file:{tmp_path}/{name}" for name in "ab"}, threads=1)
    await opened.close()

    for name in opened.names():
        with pytest.raises(RuntimeError, match="shutdown"):
            await opened.driver(name).measure([])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tape:/dev/st0", "unknown driver 'tape'"),
        ("/srv/volumes", "unknown driver"),
        ("faulty:null", "unknown driver"),
        ("faulty+tape:", "unknown driver 'tape'"),
        ("null:?delay_ms=3", "unknown option delay_ms"),
        ("faulty+null:?delay=3", "unknown option delay"),
        ("null:/srv", "takes no path"),
        ("memory:/srv", "takes no path"),
        ("memory:?capacity=lots", "capacity='lots'"),
        ("file:", "needs a path"),
        ("file://host/srv", "needs a path"),
        ("faulty+null:?fail=nonsense", "'nonsense'"),
    ],
)
def test_unusable_url_is_refused_naming_the_setting_and_the_backend(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Backends.open({"good": "null:", "bad": url}, threads=1)

    assert str(caught.value).startswith("CISTERN_BACKENDS: backend 'bad': ")
    assert "\n" not in str(caught.value)


def test_backend_with_the_name_of_a_nodes_queue_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="backend 'node:web-1': a name that begins with 'node:' is that of a"):
        Backends.open({"node:web-1": "null:"}, threads=1)


@pytest.mark.parametrize("scheme", ["file", "faulty+file"])
def test_root_that_cannot_be_created_is_refused_naming_its_path(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(NotADirectoryError, match=f"{tmp_path}/taken/volumes"):
        opened(f"{scheme}:{tmp_path}/taken/volumes")


def test_root_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Folder) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Folder, "temporary_file", denied)
    with pytest.raises(BackendUnavailable, match=f"{tmp_path} is not writable: Permission denied"):
        opened(f"file:{tmp_path}")


def test_opening_backends_creates_nothing_and_lets_none_with_a_place_be_used(tmp_path: Path) -> None:
    backends = Backends.open({"local": f"file:{tmp_path}/volumes", "fast": "memory:"}, threads=1)

    assert list(tmp_path.iterdir()) == []
    assert backends.served() == ["fast"]
    with pytest.raises(BackendUnavailable, match="The backend 'local' cannot be used: no worker has used it yet"):
        backends.get("local")


@pytest.mark.parametrize("path", ["{}/100% #1 a+b", "//{}/plain"])
def test_path_is_taken_literally(tmp_path: Path, path: str) -> None:
    driver = open_driver("file:" + path.format(tmp_path).replace("////", "///"), threads=1)

    assert isinstance(driver, FileDriver)
    assert driver.root == tmp_path / path.rpartition("/")[2]


@pytest.mark.parametrize(
    ("options", "ratio"),
    [("", 20), ("?allocate=full", 1), ("?overcommit=1.5", 1.5), ("?allocate=full&overcommit=3", 3)],
)
def test_backend_promises_no_more_than_can_be_expected(tmp_path: Path, options: str, ratio: float) -> None:
    assert open_driver(f"file:{tmp_path}/volumes{options}", threads=1).overcommit == ratio


async def test_blocks_reserved_for_root_are_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, statvfs = opened(f"file:{tmp_path}"), os.statvfs

    def with_reserved_blocks(path: str) -> os.statvfs_result:
        fields = list(statvfs(path))
        fields[2:5] = [1000, 400, 300]  # all, free, free for those who are not root
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", with_reserved_blocks)
    capacity = await driver.capacity()

    assert capacity.free == 300 * statvfs(tmp_path).f_frsize


@pytest.mark.parametrize("url", ["file:here/volumes", "file:./here/volumes?allocate=full", "faulty+file:here/volumes"])
def test_relative_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A process that is started in another directory would use another place."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"the path must be absolute, such as {tmp_path}/here/volumes"):
        Backends.open({"local": url}, threads=1)


async def test_wrapper_passes_on_the_inner_drivers_options() -> None:
    driver = open_driver("faulty+memory:?capacity=10MiB&delay_ms=0", threads=1)

    assert isinstance(driver, FaultInjector)
    assert await driver.capacity() == Capacity(total=10 * MIB, used=0, free=10 * MIB)


async def test_memory_driver_is_full_when_volume_sizes_reach_its_capacity() -> None:
    driver, volume = open_driver("memory:?capacity=10MiB", threads=1), uuid4()
    await driver.create(volume, 6 * MIB, attempt())

    with pytest.raises(StorageFull):
        await driver.create(uuid4(), 5 * MIB, attempt())
    with pytest.raises(StorageFull):
        await driver.expand(volume, 11 * MIB, attempt())
    assert await driver.expand(volume, 10 * MIB, attempt()) == 10 * MIB
    await driver.delete(volume, attempt())
    assert await driver.create(volume, 10 * MIB, attempt()) == 10 * MIB


def test_missing_parents_of_the_root_are_created(tmp_path: Path) -> None:
    opened(f"file:{tmp_path}/deep/down")

    assert (tmp_path / "deep" / "down" / ".fences").is_dir()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution with one module, which registers a driver of scheme ``tape``."""

    def install(module: str, code: str) -> None:
        (tmp_path / f"{module}.py").write_text(code)
        metadata = tmp_path / f"{module}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[cistern.storage]\ntape = {module}:open_driver\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


TAPE_DRIVER = """
from domain.storage.null import NullDriver

class TapeDriver(NullDriver):
    pass

def open_driver(url, threads):
    driver = TapeDriver()
    driver.path_and_threads = (url.path, threads)
    driver.speed = url.options.pop("speed")
    return driver
"""


def test_driver_of_another_distribution_is_opened_by_its_scheme(install: Callable[[str, str], None]) -> None:
    install("cistern_tape", TAPE_DRIVER)

    opened = Backends.open({"archive": "tape:/dev/st0?speed=3"}, threads=2)

    driver: Any = opened.driver("archive")
    assert (type(driver).__module__, type(driver).__name__) == ("cistern_tape", "TapeDriver")
    assert (driver.path_and_threads, driver.speed) == (("/dev/st0", 2), "3")
    assert opened.scheme("archive") == "tape"


def test_unknown_option_of_another_distributions_driver_is_refused(install: Callable[[str, str], None]) -> None:
    install("cistern_tape_options", TAPE_DRIVER)

    with pytest.raises(ConfigurationError, match="backend 'archive': unknown option colour"):
        Backends.open({"archive": "tape:/dev/st0?speed=3&colour=red"}, threads=2)


@pytest.mark.parametrize(
    ("module", "code", "reason"),
    [
        ("cistern_tape_import", "import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("cistern_tape_crash", "raise OSError('no tape\\nno drive')", "OSError: no tape no drive"),
        ("cistern_tape_empty", "", "AttributeError: .*'open_driver'"),
    ],
)
def test_driver_that_cannot_be_imported_is_a_configuration_error_in_one_line(
    install: Callable[[str, str], None], module: str, code: str, reason: str
) -> None:
    install(module, code)
    prefix = f"CISTERN_BACKENDS: backend 'archive': cannot load driver 'tape' from {module}:open_driver: "

    with pytest.raises(ConfigurationError) as caught:
        Backends.open({"good": "null:", "archive": "tape:/dev/st0"}, threads=1)

    assert re.fullmatch(re.escape(prefix) + reason, str(caught.value))
