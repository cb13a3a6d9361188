"""Show volumes to holders, and detach them only when nothing uses them any more."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.host_builders import (
    MIB,
    OTHER,
    VOLUME,
    devices_of,
    enlarge,
    mounted_at,
    mounted_elsewhere,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host.errors import (
    DeviceInUse,
    MountInUse,
    TargetRefused,
)
from worker.node.host.operations import HostOperations


def test_each_holder_has_a_bind_mount_of_its_own(host: HostOperations, place: Path) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    writer, reader = place / "a holder", place / "deep/reader"

    for _ in range(2):
        host.bind(VOLUME, writer, read_only=False)
        host.bind(VOLUME, reader, read_only=True)

    (writer / "file").write_text("written")
    assert (reader / "file").read_text() == "written"
    with pytest.raises(OSError, match="Read-only file system"):
        (reader / "file").write_text("refused")
    assert [len(mounted_at(target)) for target in (writer, reader)] == [1, 1]
    assert all({"nosuid", "nodev"} <= set(mounted_at(target)[0].options) for target in (writer, reader))
    [found] = host.found()
    assert found.targets == (str(writer), str(reader))
    assert found.read_only_targets == (str(reader),)

    with pytest.raises(MountInUse, match="still mounted at"):
        host.detach(VOLUME)
    for target in (writer, writer, reader):
        host.unbind(VOLUME, target)
    host.detach(VOLUME)
    assert host.found() == []


def test_a_directory_with_content_or_another_mount_is_no_target(host: HostOperations, place: Path) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    host.attach(volume_file(place, "ext4", "other"), OTHER, "ext4")
    (place / "full").mkdir()
    (place / "full/file").touch()
    host.bind(OTHER, place / "taken", read_only=False)

    with pytest.raises(TargetRefused, match="full is not empty"):
        host.bind(VOLUME, place / "full", read_only=False)
    with pytest.raises(TargetRefused, match="is mounted at"):
        host.bind(VOLUME, place / "taken", read_only=False)
    with pytest.raises(TargetRefused, match="file is not a directory"):
        host.bind(VOLUME, place / "full/file", read_only=False)
    with pytest.raises(TargetRefused, match="is not an absolute path"):
        host.bind(VOLUME, Path("relative"), read_only=False)
    host.unbind(VOLUME, place / "taken")
    assert len(mounted_at(place / "taken")) == 1, "it is the other volume's"


def test_a_volume_is_not_shown_where_it_would_be_believed_to_be_another_or_the_hosts(
    host: HostOperations, place: Path
) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    (place / "link").symlink_to(host.base_dir)
    for target in (host.base_dir / str(OTHER), place / "link" / "other", Path("/etc/cistern-test/x"), Path("//usr/x")):
        with pytest.raises(TargetRefused, match=r"below CISTERN_NODE_DIR|belongs to the system"):
            host.bind(VOLUME, target, read_only=False)
        assert not target.exists()

    host.bind(VOLUME, Path(f"/{place}/own"), read_only=False)  # two slashes at its beginning
    host.unbind(VOLUME, Path(f"/{place}/own"))
    host.detach(VOLUME)


def test_a_volume_is_shown_only_below_the_directories_that_are_allowed(place: Path) -> None:
    host = HostOperations(place / "mounts", allowed=[place / "allowed"])
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    with pytest.raises(TargetRefused, match="is not below a directory of CISTERN_NODE_PATHS"):
        host.bind(VOLUME, place / "allowed-too", read_only=False)
    host.bind(VOLUME, place / "allowed" / "one", read_only=False)
    host.unbind(VOLUME, place / "allowed" / "one")
    host.detach(VOLUME)


def test_a_volume_in_use_stays_attached(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")
    host.attach(file, VOLUME, "ext4")

    with (host.mount_path(VOLUME) / "open").open("w"), pytest.raises(MountInUse, match=rf"in use by {os.getpid()} \("):
        host.detach(VOLUME)

    assert len(mounted_at(host.mount_path(VOLUME))) == 1
    assert len(devices_of(file)) == 1
    host.detach(VOLUME)


def test_a_process_that_is_just_ending_does_not_keep_a_volume_attached(host: HostOperations, place: Path) -> None:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    ending = subprocess.Popen(["sleep", "0.5"], cwd=host.mount_path(VOLUME))

    host.detach(VOLUME)

    assert ending.wait() == 0
    assert host.found() == []


def test_a_volume_that_is_mounted_in_another_mount_namespace_keeps_its_device(
    host: HostOperations, place: Path
) -> None:
    file = volume_file(place, "ext4")
    host.attach(file, VOLUME, "ext4")

    with mounted_elsewhere(host.mount_path(VOLUME)):
        with pytest.raises(DeviceInUse, match="perhaps in a container"):
            host.detach(VOLUME)
        assert [found.mount_path for found in host.found()] == [None]
        size = enlarge(file, 8 * MIB)
        attached = host.attach(file, VOLUME, "ext4")
        assert attached.grown_to == size or "Permission denied" in str(attached.growth_error), "checked while mounted"
        with pytest.raises(DeviceInUse):
            host.detach(VOLUME)

    host.detach(VOLUME)
    assert devices_of(file) == []


def test_a_device_that_a_process_has_open_is_kept_and_not_lost_at_its_last_close(
    host: HostOperations, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.node.host.loop_devices.GONE_SECONDS", 0.1)
    file = volume_file(place, None)
    device = host.attach(file, VOLUME, None).device

    with Path(device).open("rb"), pytest.raises(DeviceInUse, match="still open in another process"):
        host.detach(VOLUME)

    assert [found.device for found in host.found()] == [device]
    host.detach(VOLUME)
    assert devices_of(file) == []


def test_the_base_directory_is_a_shared_mount_whose_mounts_appear_nowhere_else(
    host: HostOperations, place: Path
) -> None:
    outside = place / "outside"
    outside.mkdir()
    subprocess.run(["mount", "--bind", outside, outside], check=True)
    subprocess.run(["mount", "--make-shared", outside], check=True)
    host = HostOperations(outside / "mounts")
    (outside / "mounts").mkdir()
    subprocess.run(["mount", "--bind", host.base_dir, host.base_dir], check=True)  # as if killed right after it

    host.prepare()
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    host.prepare()

    [parent], [base] = mounted_at(outside), mounted_at(host.base_dir)
    assert base.peer_group is not None
    assert base.peer_group != parent.peer_group
    [mount] = mounted_at(host.mount_path(VOLUME))
    assert mount.parent_id == base.id
