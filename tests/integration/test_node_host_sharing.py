"""Several agents, nodes and programs on one host: a file has one loop device, and a directory one agent."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from tests.integration.host_builders import (
    VOLUME,
    devices_of,
    mounted_at,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host.errors import (
    VolumeFileInUse,
)
from worker.node.host.loop_devices import LoopDevices
from worker.node.host.operations import HostOperations


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
