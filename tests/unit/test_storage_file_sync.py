"""What is on the disk at which moment: fence before effect, bytes before name, everything before it is told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.storage.file.driver import FileDriver
from tests.unit.file_scene import CLONE, SNAPSHOT, VOLUME, attempt, empty_driver, perform

driver = pytest.fixture(empty_driver)


async def set_up(driver: FileDriver, operation: str) -> None:
    """Make what the operation needs, and nothing more."""
    await driver.capacity()
    if operation != "create":
        await driver.create(VOLUME, 1, attempt())
    if operation in ("restore_snapshot", "clone_snapshot", "delete_snapshot"):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())


def noting(steps: list[str], name: str) -> Callable[..., object]:
    real = getattr(os, name)

    def noted(*args: object) -> object:
        steps.append(name)
        return real(*args)

    return noted


@pytest.mark.parametrize(
    ("operation", "effect"),
    [
        ("create", "link"),
        ("expand", "ftruncate"),
        ("take_snapshot", "link"),
        ("restore_snapshot", "replace"),
        ("clone_snapshot", "link"),
        ("delete_snapshot", "unlink"),
    ],
)
async def test_the_fence_is_synced_before_the_effect_and_the_effect_before_it_is_told(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, effect: str
) -> None:
    await set_up(driver, operation)
    steps: list[str] = []
    for name in ("pwrite", "fsync", effect):
        monkeypatch.setattr(os, name, noting(steps, name))

    await perform(driver, operation, attempt(2, tell=lambda: steps.append("told")))

    steps = steps[steps.index("pwrite") :]
    assert steps[:2] == ["pwrite", "fsync"]
    assert steps.index(effect) > 1
    assert "fsync" in steps[steps.index(effect) : steps.index("told")]


@pytest.mark.parametrize("operation", ["create", "take_snapshot", "restore_snapshot", "clone_snapshot"])
async def test_the_bytes_are_synced_before_they_get_their_name(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await set_up(driver, operation)
    steps: list[str] = []
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, noting(steps, name))
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(Path(_name_of(handle)).suffix))

    await perform(driver, operation, attempt(2))

    named = next(step for step in steps if step in ("link", "replace"))
    assert ".tmp" in steps[: steps.index(named)]


@pytest.mark.parametrize(
    ("operation", "folders"),
    [
        ("create", {str(VOLUME), "volumes", ".fences"}),
        ("delete", {".trash", "volumes"}),
        ("take_snapshot", {"snapshots", str(VOLUME), ".fences"}),
        ("restore_snapshot", {str(VOLUME)}),
        ("clone_snapshot", {str(CLONE), "volumes", ".fences"}),
        ("delete_snapshot", {"snapshots"}),
    ],
)
async def test_changed_names_are_synced_before_the_effect_is_told(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, folders: set[str]
) -> None:
    await set_up(driver, operation)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(_name_of(handle)))
    told: list[set[str]] = []

    await perform(driver, operation, attempt(2, tell=lambda: told.append(set(synced))))

    assert folders <= told[0]


def _name_of(handle: int) -> str:
    return Path(f"/proc/self/fd/{handle}").readlink().name
