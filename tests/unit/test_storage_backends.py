"""From the setting to a driver, and what is said when that cannot be."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from cistern_test_drivers.fault_injector import FaultInjector
from domain.errors import ConfigurationError, UnknownBackend
from domain.storage import backends
from domain.storage.backends import Backends, open_driver
from domain.storage.context import Fence, Grant
from domain.storage.driver import Capacity
from domain.storage.errors import StorageFull
from domain.storage.file.driver import FileDriver

MIB = 1024 * 1024


def attempt() -> Grant:
    return Grant(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)


def test_backends_are_listed_by_name_and_kind_in_the_order_of_the_setting(tmp_path: Path) -> None:
    urls = {"local": f"file:{tmp_path}/v", "bench": "null:", "slow": f"faulty+file:{tmp_path}/w?delay_ms=1"}
    opened = Backends.open(urls, threads=1)

    assert opened.names() == ["local", "bench", "slow"]
    assert [opened.scheme(name) for name in opened.names()] == ["file", "null", "faulty+file"]
    assert "local" in opened
    assert "remote" not in opened


def test_reach_hands_out_the_same_driver_each_time() -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)

    assert opened.get("bench") is opened.get("bench")


def test_an_unknown_backend_is_an_invalid_field() -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)
    asks: list[Callable[[str], object]] = [opened.get, opened.scheme]
    for ask in asks:
        with pytest.raises(UnknownBackend, match="'tape'") as caught:
            ask("tape")
        assert caught.value.details["field"] == "backend"


def test_storage_is_out_of_reach_inside_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Backends.open({"bench": "null:"}, threads=1)
    monkeypatch.setattr(backends, "in_transaction", lambda: True)

    with pytest.raises(RuntimeError, match="storage work inside a transaction"):
        opened.get("bench")
    assert opened.names() == ["bench"]


async def test_closing_closes_every_driver(tmp_path: Path) -> None:
    opened = Backends.open({name: f"file:{tmp_path}/{name}" for name in "ab"}, threads=1)
    await opened.close()

    for name in opened.names():
        with pytest.raises(RuntimeError, match="shutdown"):
            await opened.get(name).capacity()


@pytest.mark.parametrize(
    ("url", "complaint"),
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
def test_a_url_that_cannot_be_used_is_refused_with_the_name_of_setting_and_backend(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        Backends.open({"good": "null:", "bad": url}, threads=1)

    assert str(caught.value).startswith("CISTERN_BACKENDS: backend 'bad': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["file", "faulty+file"])
def test_a_root_that_cannot_be_made_is_refused_with_its_path(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigurationError, match=f"backend 'local': {tmp_path}/taken/volumes cannot be written"):
        Backends.open({"local": f"{scheme}:{tmp_path}/taken/volumes"}, threads=1)


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(ConfigurationError, match=f"{tmp_path} cannot be written: Permission denied"):
        Backends.open({"local": f"file:{tmp_path}"}, threads=1)


def test_opening_a_root_leaves_only_its_two_directories(tmp_path: Path) -> None:
    Backends.open({"local": f"file:{tmp_path}"}, threads=1)

    assert sorted(path.name for path in tmp_path.rglob("*")) == [".fences", ".trash"]


@pytest.mark.parametrize("place", ["{}/100% #1 a+b", "//{}/plain"])
def test_a_path_is_taken_as_it_stands(tmp_path: Path, place: str) -> None:
    driver = open_driver("file:" + place.format(tmp_path).replace("////", "///"), threads=1)

    assert isinstance(driver, FileDriver)
    assert driver.root == tmp_path / place.rpartition("/")[2]


def test_a_relative_path_is_one_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_driver("file:here/volumes", threads=1)

    assert (tmp_path / "here" / "volumes").is_dir()


async def test_the_wrapper_leaves_the_inner_drivers_options_to_it() -> None:
    driver = open_driver("faulty+memory:?capacity=10MiB&delay_ms=0", threads=1)

    assert isinstance(driver, FaultInjector)
    assert await driver.capacity() == Capacity(total=10 * MIB, used=0)


async def test_memory_is_full_when_its_capacity_is_promised_away() -> None:
    driver, volume = open_driver("memory:?capacity=10MiB", threads=1), uuid4()
    await driver.create(volume, 6 * MIB, attempt())

    with pytest.raises(StorageFull):
        await driver.create(uuid4(), 5 * MIB, attempt())
    with pytest.raises(StorageFull):
        await driver.expand(volume, 11 * MIB, attempt())
    assert await driver.expand(volume, 10 * MIB, attempt()) == 10 * MIB
    await driver.delete(volume, attempt())
    assert await driver.create(volume, 10 * MIB, attempt()) == 10 * MIB


def test_a_missing_directory_of_the_root_is_made(tmp_path: Path) -> None:
    open_driver(f"file:{tmp_path}/deep/down", threads=1)

    assert (tmp_path / "deep" / "down" / ".fences").is_dir()
