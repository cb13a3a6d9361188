"""What the demo finds missing on a machine, and what it takes away of what it has left there."""

import os
import subprocess
from pathlib import Path

import pytest

from api.cli import demo_host
from tests.integration.host_builders import devices_in, mounted_at
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(demo_host, "which", lambda name, path: None if "xfs" in name else f"{path}/{name}")
    without_tools = demo_host.obstacle(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    without_root = demo_host.obstacle(tmp_path)
    monkeypatch.setattr("sys.platform", "darwin")

    assert (without_tools, without_root) == ("mkfs.xfs and xfs_growfs", "root")
    assert demo_host.obstacle(tmp_path) == "Linux"


def test_machine_that_refuses_a_mount_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(tool: str, *_: object) -> None:
        if tool == "mount":
            raise subprocess.CalledProcessError(32, tool, stderr="mount: permission denied.\n")

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(demo_host, "which", lambda name, path: f"{path}/{name}")
    monkeypatch.setattr(demo_host, "_run", refuse)

    assert demo_host.obstacle(tmp_path) == "mounts on loop devices (mount: permission denied.)"
    assert list(tmp_path.iterdir()) == []


def test_mounts_and_devices_that_are_left_are_taken_away(place: Path) -> None:
    if missing := demo_host.obstacle(place):
        pytest.skip(f"needs {missing}")
    image, directory = place / "image", place / "mounted"
    image.touch()
    os.truncate(image, 320 * 2**20)
    directory.mkdir()
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    subprocess.run(["mount", device.stdout.strip(), directory], check=True)

    demo_host.clear(place)

    assert mounted_at(directory) == []
    assert devices_in(place) == []
