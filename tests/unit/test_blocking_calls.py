"""A call that cannot report progress has a limit of its own, and the file driver says which calls those are."""

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.context import Fence, Grant, StallLimits
from domain.storage.driver import StorageDriver
from domain.storage.file import disk
from tests.unit.storage_builders import MIB, RecordingGrant, Scenario, opened

LIMITS = StallLimits(seconds=10, call_seconds=100)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def grant(clock: Clock) -> Grant:
    return Grant(uuid4(), Fence(1, 0), 1000.0, clock=clock)


@pytest.mark.parametrize(("seconds", "is_stalled"), [(11, False), (100, False), (101, True)])
def test_work_in_a_blocking_call_is_stalled_after_the_limit_of_calls(
    clock: Clock, grant: Grant, seconds: float, *, is_stalled: bool
) -> None:
    with grant.blocking_call("reflink"):
        clock.now = seconds
        assert grant.state.is_stalled(LIMITS) is is_stalled


def test_work_outside_of_blocking_calls_is_stalled_after_the_limit_of_progress(clock: Clock, grant: Grant) -> None:
    clock.now = 20
    with grant.blocking_call("reflink"):
        clock.now = 50
    assert not grant.state.is_stalled(LIMITS), "the return of a call is no progress"
    clock.now = 61

    assert grant.state.is_stalled(LIMITS)


def test_slow_call_is_known_once_it_takes_longer_than_other_work_may(clock: Clock, grant: Grant) -> None:
    with grant.blocking_call("reflink"):
        clock.now = 10
        assert grant.state.slow_call(LIMITS) is None
        clock.now = 11
        call = grant.state.slow_call(LIMITS)
        assert call is not None
        assert (call.name, call.duration) == ("reflink", 11)
        clock.now = 101
        assert grant.state.slow_call(LIMITS) is None


def test_items_in_blocking_calls_are_told_apart(clock: Clock, grant: Grant) -> None:
    first, second = grant.for_item(Fence(1, 0)), grant.for_item(Fence(2, 0))
    with first.blocking_call("reflink"):
        clock.now = 95
        with second.blocking_call("sync"):
            clock.now = 106  # the first one hangs
            call = grant.state.slow_call(LIMITS)
            assert call is not None
            assert call.name == "sync"
            assert not grant.state.is_stalled(LIMITS)


def test_call_that_fails_is_over(clock: Clock, grant: Grant) -> None:
    with pytest.raises(OSError, match="injected"), grant.blocking_call("sync"):
        raise OSError("injected")
    clock.now = 11

    assert grant.state.is_stalled(LIMITS)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[StorageDriver]:
    driver = opened(f"file:{tmp_path}/volumes?allocate=full", 2)
    yield driver
    await driver.close()


def watch(monkeypatch: pytest.MonkeyPatch, grant: Grant) -> list[tuple[str, frozenset[str]]]:
    """Record each system call that may take long, and the names of the grant's blocking calls then."""
    seen: list[tuple[str, frozenset[str]]] = []

    def recording(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def record(*args: object, **options: object) -> object:
            seen.append((name, frozenset(call.name for call in grant.state.calls)))
            return real(*args, **options)

        return record

    for module, name in [
        (fcntl, "ioctl"),
        (disk, "reserve"),
        *((os, name) for name in NAMES.keys() - {"ioctl", "reserve"}),
    ]:
        monkeypatch.setattr(module, name, recording(name, getattr(module, name)))
    return seen


NAMES = {
    "ioctl": "reflink",
    "fsync": "sync",
    "fdatasync": "sync",
    "ftruncate": "resize",
    "reserve": "allocate",
    "unlink": "remove",
    "replace": "replace",
}
CALLS = {
    "create": {"reserve", "ftruncate", "fsync", "unlink"},
    "expand": {"reserve", "ftruncate", "fsync"},
    "delete": {"fsync", "unlink"},
    "seal": {"fsync", "ftruncate"},
    "take_snapshot": {"ioctl", "fsync", "unlink"},
    "restore_snapshot": {"ioctl", "fsync", "unlink", "replace"},
    "clone_snapshot": {"ioctl", "fsync", "unlink"},
    "delete_snapshot": {"fsync", "unlink"},
    "seal_snapshot": {"fsync"},
}


@pytest.mark.parametrize("operation", CALLS)
async def test_every_call_of_the_file_driver_that_may_take_long_is_a_blocking_call(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    scenario = Scenario(driver)
    if operation == "take_snapshot":
        await driver.create(scenario.volume, MIB, RecordingGrant())
    elif operation != "create":
        await scenario.set_up()
    grant = RecordingGrant(2)
    seen = watch(monkeypatch, grant)

    await scenario.perform(operation, grant)

    assert CALLS[operation] <= {name for name, _ in seen}
    assert [(name, names) for name, names in seen if names != {NAMES[name]}] == []
