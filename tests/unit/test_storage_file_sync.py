"""The order of syncs: fence before effect, bytes before their final name, everything before `on_published`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import CLONE, SNAPSHOT, VOLUME, attempt, empty_driver, perform

driver = pytest.fixture(empty_driver)


async def set_up(driver: FileDriver, operation: str) -> None:
    """Create only what the operation needs."""
    await driver.capacity()
    if operation != "create":
        await driver.create(VOLUME, 1, attempt())
    if operation in ("restore_snapshot", "clone_snapshot", "delete_snapshot"):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())


def recording(steps: list[str], name: str) -> Callable[..., object]:
    real = getattr(os, name)

    def recorded(*args: object, **options: object) -> object:
        steps.append(name)
        return real(*args, **options)

    return recorded


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
async def test_fence_is_synced_before_the_effect_and_the_effect_before_on_published(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, effect: str
) -> None:
    await set_up(driver, operation)
    steps: list[str] = []
    for name in ("pwrite", "fsync", effect):
        monkeypatch.setattr(os, name, recording(steps, name))

    await perform(driver, operation, attempt(2, callback=lambda: steps.append("on_published")))

    steps = steps[steps.index("pwrite") :]
    assert steps[:2] == ["pwrite", "fsync"]
    assert steps.index(effect) > 1
    assert "fsync" in steps[steps.index(effect) : steps.index("on_published")]


@pytest.mark.parametrize("operation", ["create", "take_snapshot", "restore_snapshot", "clone_snapshot"])
async def test_bytes_are_synced_before_they_get_their_final_name(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await set_up(driver, operation)
    steps: list[str] = []
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, recording(steps, name))
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
async def test_changed_directories_are_synced_before_on_published(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, folders: set[str]
) -> None:
    await set_up(driver, operation)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(_name_of(handle)))
    synced_when_published: list[set[str]] = []

    await perform(driver, operation, attempt(2, callback=lambda: synced_when_published.append(set(synced))))

    assert folders <= synced_when_published[0]


def _name_of(handle: int) -> str:
    return Path(f"/proc/self/fd/{handle}").readlink().name
