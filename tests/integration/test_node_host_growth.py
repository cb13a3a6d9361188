"""Grow file systems on real loop devices, and tell how full they are."""

import os
import subprocess
from pathlib import Path

import pytest

from domain.storage.filesystems import FILESYSTEMS
from tests.integration.host_builders import (
    MIB,
    VOLUME,
    enlarge,
    filesystem_size,
    mounted_at,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host import filesystems
from worker.node.host.calls import run as run_tool
from worker.node.host.errors import (
    GrowthRefused,
    HostFailed,
)
from worker.node.host.loop_devices import LoopDevices
from worker.node.host.operations import HostOperations

CAP_SYS_RESOURCE = 24


def may_grow_mounted_ext4() -> bool:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_file_system_grows_with_its_file_when_it_is_attached_again(
    host: HostOperations, place: Path, filesystem: str
) -> None:
    file = volume_file(place, filesystem)
    host.attach(file, VOLUME, filesystem)
    (host.mount_path(VOLUME) / "kept").write_text("kept")
    before = host.usage(VOLUME)
    host.detach(VOLUME)

    size = enlarge(file, 128 * MIB)
    attached = host.attach(file, VOLUME, filesystem)

    assert (attached.grown_to, attached.growth_error) == (size, None)
    assert filesystem_size(host) == size
    assert host.usage(VOLUME).size > before.size + 100 * MIB
    assert (host.mount_path(VOLUME) / "kept").read_text() == "kept"


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_a_mounted_file_system_grows_with_its_file(host: HostOperations, place: Path, filesystem: str) -> None:
    file = volume_file(place, filesystem)
    host.attach(file, VOLUME, filesystem)
    before = host.usage(VOLUME)

    size = enlarge(file, 128 * MIB)

    assert host.grow(VOLUME, filesystem) == size
    assert host.grow(VOLUME, filesystem) == size
    assert filesystem_size(host) == size
    assert host.usage(VOLUME).size > before.size + 100 * MIB


def test_the_refusal_of_a_mounted_ext4_to_grow_is_said_in_the_words_of_the_tool(
    host: HostOperations, place: Path
) -> None:
    file = volume_file(place, "ext4")
    host.attach(file, VOLUME, "ext4")
    size = enlarge(file, 64 * MIB)

    if may_grow_mounted_ext4():
        assert host.grow(VOLUME, "ext4") == size
    else:
        with pytest.raises(GrowthRefused, match="Permission denied to resize filesystem"):
            host.grow(VOLUME, "ext4")
        host.detach(VOLUME)
        assert host.attach(file, VOLUME, "ext4").grown_to == size
    assert filesystem_size(host) == size


def test_an_ext4_that_cannot_be_checked_is_attached_as_it_is_with_the_reason(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")
    subprocess.run(["debugfs", "-w", "-R", "write /proc/self/status kept", str(file)], check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", "sif kept block[0] 1", str(file)], check=True, capture_output=True)
    enlarge(file, 64 * MIB)

    attached = host.attach(file, VOLUME, "ext4")

    assert attached.grown_to is None
    assert "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY" in str(attached.growth_error)
    assert len(mounted_at(host.mount_path(VOLUME))) == 1


def test_a_volume_without_a_file_system_is_a_device_that_grows(host: HostOperations, place: Path) -> None:
    file = volume_file(place, None)

    attached = host.attach(file, VOLUME, None)
    Path(attached.device).write_bytes(b"x" * MIB)
    size = enlarge(file, MIB)

    assert attached.mount_path is None
    assert host.grow(VOLUME, None) == size
    assert [device.size for device in LoopDevices().of_file(file)] == [size]
    host.detach(VOLUME)
    assert file.read_bytes()[:MIB] == b"x" * MIB


def test_a_volume_that_has_grown_while_the_agent_was_away_is_grown_when_it_is_attached_again(
    host: HostOperations, place: Path
) -> None:
    file = volume_file(place, "xfs")
    host.attach(file, VOLUME, "xfs")
    size = enlarge(file, 64 * MIB)

    assert host.attach(file, VOLUME, "xfs").grown_to == size
    assert filesystem_size(host) == size


def test_trimming_gives_blocks_back(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")
    host.attach(file, VOLUME, "ext4")
    (host.mount_path(VOLUME) / "large").write_bytes(os.urandom(20 * MIB))
    filesystems.sync(host.mount_path(VOLUME))
    before = file.stat().st_blocks * 512
    (host.mount_path(VOLUME) / "large").unlink()
    filesystems.sync(host.mount_path(VOLUME))

    host.trim(VOLUME)

    assert file.stat().st_blocks * 512 < before - 15 * MIB


def test_usage_is_what_df_shows(host: HostOperations, place: Path) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    (host.mount_path(VOLUME) / "file").write_bytes(b"x" * MIB)

    usage = host.usage(VOLUME)

    columns = "--output=size,used,avail,itotal,iused"
    shown = subprocess.run(["df", "-B1", columns, host.mount_path(VOLUME)], check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines()[1].split() == [
        str(number) for number in (usage.size, usage.used, usage.available, usage.inodes, usage.inodes_used)
    ]


def test_usage_of_a_volume_that_is_not_mounted_is_not_that_of_the_host(host: HostOperations, place: Path) -> None:
    host.mount_path(VOLUME).mkdir(parents=True)

    with pytest.raises(HostFailed, match="Nothing is mounted at"):
        host.usage(VOLUME)


def test_a_growth_that_was_interrupted_is_repaired_and_finished_before_the_mount(
    host: HostOperations, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = volume_file(place, "ext4")
    os.setxattr(file, "user.cistern.growing", b"")  # of a size that it has already: only the mark tells
    commands: list[tuple[str, ...]] = []

    def recorded(*command: str, seconds: float) -> str:
        commands.append(command[:3])
        return run_tool(*command, seconds=seconds)

    monkeypatch.setattr(filesystems, "run", recorded)
    host.attach(file, VOLUME, "ext4")
    host.detach(VOLUME)

    assert ("e2fsck", "-f", "-y") in commands
    assert "user.cistern.growing" not in os.listxattr(file)
