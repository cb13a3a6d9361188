"""Attach and detach volumes with real loop devices and file systems."""

import os
import subprocess
from pathlib import Path

import pytest

from domain.storage.context import Stopped, StopReason
from domain.storage.errors import VolumeMissing
from domain.storage.filesystems import FILESYSTEMS
from tests.integration.host_builders import (
    MIB,
    OTHER,
    VOLUME,
    devices_of,
    enlarge,
    mounted_at,
    require_tools,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host import filesystems
from worker.node.host.errors import (
    AttachmentStale,
    HostFailed,
)
from worker.node.host.host import Host
from worker.node.host.loop_devices import LoopDevices
from worker.node.host.operations import HostOperations


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_volume_is_mounted_once_however_often_it_is_attached(
    host: HostOperations, place: Path, filesystem: str
) -> None:
    file = volume_file(place, filesystem)

    first = host.attach(file, VOLUME, filesystem)
    second = host.attach(file, VOLUME, filesystem)

    assert first == second
    assert first.mount_path == str(host.base_dir / str(VOLUME))
    assert first.grown_to == file.stat().st_size
    assert devices_of(file) == [first.device]
    [mount] = mounted_at(host.mount_path(VOLUME))
    assert mount.filesystem == filesystem
    assert {"nosuid", "nodev"} <= set(mount.options)

    host.detach(VOLUME)
    host.detach(VOLUME)
    assert devices_of(file) == []
    assert mounted_at(host.mount_path(VOLUME)) == []
    assert not host.mount_path(VOLUME).exists()


def test_a_volume_with_another_file_system_than_expected_leaves_no_device(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")

    with pytest.raises(HostFailed, match="wrong fs type"):
        host.attach(file, VOLUME, "xfs")

    assert devices_of(file) == []


def test_a_volume_whose_file_is_missing_is_an_error(host: HostOperations, place: Path) -> None:
    with pytest.raises(VolumeMissing, match=r"There is no .*/data on the node"):
        host.attach(place / "data", VOLUME, "ext4")


def test_the_device_uses_direct_io_where_the_file_system_of_the_file_can(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "xfs")
    host.attach(file, VOLUME, "xfs")
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the test's directory has no direct I/O")

    assert [device.has_direct_io for device in LoopDevices().of_file(file)] == [True]


def test_a_volume_that_is_not_attached_is_neither_bound_nor_grown(host: HostOperations, place: Path) -> None:
    with pytest.raises(HostFailed, match="Nothing is mounted at"):
        host.bind(VOLUME, place / "target", read_only=False)
    host.unbind(VOLUME, place / "target")
    with pytest.raises(HostFailed, match="not attached to this node"):
        host.grow(VOLUME, "xfs")


async def test_an_error_number_becomes_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError(5, "Input/output error", "/mounts/volume")

    host = Host(place / "mounts")
    await host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    monkeypatch.setattr(filesystems, "usage", broken)

    with pytest.raises(HostFailed, match=r"/mounts/volume: Input/output error\."):
        await host.usage(VOLUME)


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_volume_is_not_mounted_once_the_attempt_has_lost_its_lease(
    host: HostOperations, place: Path, allowed: int
) -> None:
    """As after the agent was stopped: another node may have the volume."""
    file, calls = volume_file(place, "ext4"), iter(range(9))

    def check() -> None:
        if next(calls) >= allowed:
            raise Stopped(StopReason.LEASE_LOST)

    with pytest.raises(Stopped):
        host.attach(file, VOLUME, "ext4", check)
    assert (host.found(), devices_of(file)) == ([], [])


def test_a_new_file_of_a_volume_is_refused_while_the_old_one_is_attached(host: HostOperations, place: Path) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    new = volume_file(place, "ext4", "new")
    new.replace(place / "data")

    with pytest.raises(AttachmentStale, match="still has an earlier file"):
        host.attach(place / "data", VOLUME, "ext4")

    assert devices_of(place / "data") == []


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_clone_is_mounted_beside_its_source(host: HostOperations, place: Path, filesystem: str) -> None:
    file = volume_file(place, filesystem)
    subprocess.run(["cp", "--sparse=always", file, place / "clone"], check=True)
    host.attach(file, VOLUME, filesystem)
    host.attach(place / "clone", OTHER, filesystem)

    (host.mount_path(VOLUME) / "file").write_text("source")
    (host.mount_path(OTHER) / "file").write_text("clone")

    assert (host.mount_path(VOLUME) / "file").read_text() == "source"


async def test_the_host_does_all_of_it_for_an_event_loop(place: Path) -> None:
    require_tools("xfs_growfs")
    host = Host(place / "mounts")
    file = volume_file(place, "xfs")

    await host.prepare()
    attached = await host.attach(file, VOLUME, "xfs")
    await host.bind(VOLUME, place / "target", read_only=False)
    size = enlarge(file, 64 * MIB)
    assert await host.grow(VOLUME, "xfs") == size
    assert (await host.usage(VOLUME)).size > 300 * MIB
    freeze = await host.freeze(VOLUME, 5)
    assert freeze.still_frozen()
    assert await freeze.release()
    assert await host.thaw_all() == []
    await host.trim(VOLUME)
    [found] = await host.found()
    assert (found.device, found.targets) == (attached.device, (str(place / "target"),))
    await host.unbind(VOLUME, place / "target")
    await host.detach(VOLUME)
    assert await host.found() == []
