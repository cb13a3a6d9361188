"""Attach, bind, grow and detach with real loop devices and file systems."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from domain.storage.context import Stopped, StopReason
from domain.storage.errors import VolumeMissing
from tests.integration.host_builders import (
    MIB,
    OTHER,
    VOLUME,
    devices_of,
    enlarge,
    filesystem_size,
    mounted_at,
    mounted_elsewhere,
    require_tools,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host import filesystems
from worker.node.host.calls import run as run_tool
from worker.node.host.errors import (
    AttachmentStale,
    DeviceInUse,
    GrowthRefused,
    HostFailed,
    MountInUse,
    TargetRefused,
    VolumeFileInUse,
)
from worker.node.host.host import Host
from worker.node.host.loop_devices import LoopDevices
from worker.node.host.operations import HostOperations

FILESYSTEMS = ["ext4", "xfs", "btrfs"]
CAP_SYS_RESOURCE = 24


def may_grow_mounted_ext4() -> bool:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)


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


def test_a_volume_with_another_file_system_than_expected_leaves_no_device(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")

    with pytest.raises(HostFailed, match="wrong fs type"):
        host.attach(file, VOLUME, "xfs")

    assert devices_of(file) == []


def test_a_volume_whose_file_is_missing_is_an_error(host: HostOperations, place: Path) -> None:
    with pytest.raises(VolumeMissing, match=r"There is no .*/data on the node"):
        host.attach(place / "data", VOLUME, "ext4")


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


def test_the_device_uses_direct_io_where_the_file_system_of_the_file_can(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "xfs")
    host.attach(file, VOLUME, "xfs")
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the test's directory has no direct I/O")

    assert [device.has_direct_io for device in LoopDevices().of_file(file)] == [True]


def test_many_who_attach_a_file_at_once_get_one_device(place: Path) -> None:
    file = volume_file(place, "ext4")
    hosts = [HostOperations(place / "mounts") for _ in range(8)]
    devices: list[str] = []
    barrier = threading.Barrier(len(hosts))

    def attach(host: HostOperations) -> None:
        barrier.wait()
        devices.append(host.attach(file, VOLUME, "ext4").device)

    threads = [threading.Thread(target=attach, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(devices) == len(hosts)
    assert set(devices) == set(devices_of(file))
    assert len(devices_of(file)) == 1
    assert len(mounted_at(hosts[0].mount_path(VOLUME))) == 1
    assert len(mounted_at(hosts[0].base_dir)) == 1


def test_the_base_directory_becomes_one_mount_however_many_prepare_it_at_once(place: Path) -> None:
    hosts = [HostOperations(place / "mounts") for _ in range(16)]
    barrier = threading.Barrier(len(hosts))

    def prepare(host: HostOperations) -> None:
        barrier.wait()
        host.prepare()

    threads = [threading.Thread(target=prepare, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(mounted_at(hosts[0].base_dir)) == 1


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


def test_many_nodes_that_attach_a_file_at_once_give_it_one_device(place: Path) -> None:
    file = volume_file(place, None)
    attached: list[str] = []
    refused: list[str] = []
    barrier = threading.Barrier(8)

    def attach(mark: str) -> None:
        barrier.wait()
        try:
            attached.append(LoopDevices().attach(file, mark).path)
        except VolumeFileInUse as error:
            refused.append(error.message)

    threads = [threading.Thread(target=attach, args=(f"mark {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(attached), len(refused)) == (1, 7)
    assert devices_of(file) == attached


def test_a_volume_that_has_grown_while_the_agent_was_away_is_grown_when_it_is_attached_again(
    host: HostOperations, place: Path
) -> None:
    file = volume_file(place, "xfs")
    host.attach(file, VOLUME, "xfs")
    size = enlarge(file, 64 * MIB)

    assert host.attach(file, VOLUME, "xfs").grown_to == size
    assert filesystem_size(host) == size


def test_two_nodes_on_one_host_never_share_a_file(place: Path) -> None:
    file = volume_file(place, "ext4")
    HostOperations(place / "one").attach(file, VOLUME, "ext4")

    with pytest.raises(VolumeFileInUse, match=r"data is used by /dev/loop\d+"):
        HostOperations(place / "two").attach(file, VOLUME, "ext4")

    assert len(devices_of(file)) == 1
    assert HostOperations(place / "two").found() == []


def test_a_volume_below_another_base_directory_is_not_taken_for_detached(place: Path) -> None:
    """As after CISTERN_NODE_DIR was changed: the volume would be deleted, or attached elsewhere, while it is used."""
    former = HostOperations(place / "one")
    former.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    with pytest.raises(VolumeFileInUse, match=r"/dev/loop\d+ has the volume, attached below another CISTERN_NODE_DIR"):
        HostOperations(place / "two").detach(VOLUME)

    former.detach(VOLUME)
    HostOperations(place / "two").detach(VOLUME)


def test_a_directory_with_volumes_is_not_taken_over_by_another_node(host: HostOperations, place: Path) -> None:
    """As after the host was renamed: all of them would be taken from whoever uses them."""
    with host.claimed("web-1", "a"):
        host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    with (
        pytest.raises(ConfigurationError, match="has volumes of the node 'web-1': set CISTERN_NODE"),
        host.claimed("web-2", "a"),
    ):
        pass
    with pytest.raises(ConfigurationError, match="of another installation"), host.claimed("web-1", "b"):
        pass
    with host.claimed("web-1", "a"):
        host.detach(VOLUME)
    with host.claimed("web-2", "b"):
        pass


def test_a_directory_has_one_agent_at_a_time(host: HostOperations) -> None:
    with host.claimed("web-1", "a"):
        with pytest.raises(ConfigurationError, match="another agent has"), host.claimed("web-1", "a"):
            pass
        with (
            pytest.raises(ConfigurationError, match="another agent has"),
            HostOperations(host.base_dir).claimed("x", "b"),
        ):
            pass
    with host.claimed("web-1", "a"):
        pass


def test_a_file_that_a_loop_device_of_another_program_has_is_refused(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")
    subprocess.run(["losetup", "--find", "--offset", "4096", str(file)], check=True)

    with pytest.raises(VolumeFileInUse, match="is used by /dev/loop"):
        host.attach(file, VOLUME, "ext4")


def test_a_file_is_found_again_after_it_was_renamed_or_deleted(host: HostOperations, place: Path) -> None:
    file = volume_file(place, "ext4")
    attached = host.attach(file, VOLUME, "ext4")

    file.rename(place / "renamed")
    assert host.attach(place / "renamed", VOLUME, "ext4").device == attached.device
    assert [found.file for found in host.found()] == [str(place / "renamed")]

    (place / "renamed").unlink()
    assert [(found.volume_id, found.device, found.file) for found in host.found()] == [(VOLUME, attached.device, None)]
    host.detach(VOLUME)
    assert host.found() == []


def test_volumes_are_found_although_what_their_files_are_on_does_not_answer(
    host: HostOperations, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = volume_file(place, "ext4")
    host.attach(file, VOLUME, "ext4")

    original = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path == file:
            pytest.fail("it looks at the file, and would hang")
        return original(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", stat)
        [found] = host.found()
    assert (found.file, found.mount_path) == (str(file), str(host.mount_path(VOLUME)))
    host.detach(VOLUME)


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


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_clone_is_mounted_beside_its_source(host: HostOperations, place: Path, filesystem: str) -> None:
    file = volume_file(place, filesystem)
    subprocess.run(["cp", "--sparse=always", file, place / "clone"], check=True)
    host.attach(file, VOLUME, filesystem)
    host.attach(place / "clone", OTHER, filesystem)

    (host.mount_path(VOLUME) / "file").write_text("source")
    (host.mount_path(OTHER) / "file").write_text("clone")

    assert (host.mount_path(VOLUME) / "file").read_text() == "source"


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
