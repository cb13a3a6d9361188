"""What a node reads of its host: mounts, loop devices; and calls that fail or do not return."""

import asyncio
import threading
from pathlib import Path
from uuid import UUID

import pytest

from tests.unit.fake_host import FakeHost
from worker.node.host import loop_ioctls, mountinfo
from worker.node.host.calls import ToolFailed, in_thread, run, within
from worker.node.host.errors import HostBusy, HostStuck, HostUnable, MountInUse, TargetRefused
from worker.node.host.host import Host, HostProtocol
from worker.node.host.locks import file_locked, volume_locked
from worker.node.host.loop_ioctls import AUTOCLEAR, DIRECT_IO, LoopStatus

VOLUME, OTHER = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "12")

MOUNTS = rb"""27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 254:0 /srv/mounts /srv/mounts rw,relatime shared:7 master:3 propagate_from:2 - ext4 /dev/vda rw
41 40 7:0 / /srv/mounts/a\040b\134c\011d\012e rw,nosuid,nodev shared:8 - xfs /dev/loop0 rw,nouuid
42 27 7:0 / /target ro,nosuid,nodev - xfs /dev/loop0 rw
43 40 0:51 / /srv/mounts/btrfs rw - btrfs /dev/loop1 rw,subvolid=5
44 27 0:51 /sub /sub rw - btrfs /dev/loop1 rw
45 27 7:2 / /stacked rw - ext4 /dev/loop2 rw
46 45 7:3 / /stacked rw - ext4 /dev/loop3 rw
no line of a mount
"""


@pytest.fixture
def table() -> mountinfo.MountTable:
    return mountinfo.parse(MOUNTS)


def test_escaped_characters_of_a_mount_point_are_read(table: mountinfo.MountTable) -> None:
    mount = table.at("/srv/mounts/a b\\c\td\ne")

    assert mount is not None
    assert (mount.source, mount.filesystem, mount.root) == ("/dev/loop0", "xfs", "/")
    assert not mount.is_read_only


def test_a_mount_that_covers_another_one_is_what_is_seen(table: mountinfo.MountTable) -> None:
    seen, reversed_lines = table.at("/stacked"), mountinfo.parse(b"\n".join(reversed(MOUNTS.splitlines())))

    assert seen is not None
    assert seen.source == "/dev/loop3"
    assert reversed_lines.at("/stacked") == seen


def test_nothing_is_seen_where_nothing_is_mounted(table: mountinfo.MountTable) -> None:
    assert table.at("/srv") is None


def test_the_mounts_of_a_device_include_bind_mounts(table: mountinfo.MountTable) -> None:
    assert [mount.id for mount in table.of_device("/dev/loop0")] == [41, 42]
    assert [mount.id for mount in table.of_device("/dev/loop1")] == [43, 44]
    assert table.of_device("/dev/loop9") == []


def test_the_peer_group_tells_what_a_mount_is_shared_with(table: mountinfo.MountTable) -> None:
    groups = {mount.id: mount.peer_group for mount in table.mounts}

    assert (groups[27], groups[40], groups[42]) == (1, 7, None)
    assert [parent.id for mount in table.mounts if mount.id in {41, 43} and (parent := table.parent(mount))] == [40, 40]


def test_the_mounts_of_this_process_can_be_read() -> None:
    if not mountinfo.MOUNTINFO.exists():
        pytest.skip("needs Linux")

    assert mountinfo.read().at("/") is not None


def test_the_status_of_a_loop_device_is_read_as_it_is_written() -> None:
    status = LoopStatus(3, 0, 0, 4096, 8192, AUTOCLEAR | DIRECT_IO, "cistern:mark")

    assert len(status.packed()) == 232
    assert loop_ioctls.parse_status(status.packed()) == status


def test_a_tool_that_fails_is_an_error_with_its_words() -> None:
    with pytest.raises(ToolFailed, match="sh: it is out of order") as caught:
        run("sh", "-c", "echo it is out of order >&2; exit 3")

    assert caught.value.status == 3


def test_a_tool_that_is_missing_is_named() -> None:
    with pytest.raises(HostUnable, match=r"The node has no no-such-tool; install it\."):
        run("no-such-tool")


def test_a_tool_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(HostStuck, match=r"sh has not ended within 0\.2 s"):
        run("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60", seconds=0.2)

    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def fails() -> None:
    raise TimeoutError("its own")


async def test_a_call_that_does_not_return_is_given_up() -> None:
    forever = threading.Event()
    try:
        with pytest.raises(HostStuck, match=r"has not answered within 0\.1 s"):
            within(0.1, forever.wait)
        with pytest.raises(HostStuck, match=r"has not answered within 0\.1 s"):
            await in_thread(0.1, forever.wait)
    finally:
        forever.set()


async def test_a_call_that_returns_or_fails_does_so_for_its_caller() -> None:
    assert within(5, max, 1, 2) == 2
    assert await in_thread(5, max, 1, 2) == 2
    with pytest.raises(TimeoutError, match="its own"):
        within(5, fails)
    with pytest.raises(TimeoutError, match="its own"):
        await in_thread(5, fails)


async def test_more_calls_may_hang_than_an_event_loop_has_threads_in_its_pool() -> None:
    forever = threading.Event()
    try:
        hanging = [asyncio.ensure_future(in_thread(60, forever.wait)) for _ in range(100)]

        assert await in_thread(5, max, 1, 2) == 2
    finally:
        forever.set()
    assert await asyncio.gather(*hanging) == [True] * 100


def test_a_volume_is_locked_for_one_operation_at_a_time(tmp_path: Path) -> None:
    with volume_locked(tmp_path, VOLUME):
        with pytest.raises(HostBusy, match="still at work on the node"), volume_locked(tmp_path, VOLUME, 0):
            pytest.fail("locked twice")
        with volume_locked(tmp_path, OTHER, 0):
            pass
    with volume_locked(tmp_path, VOLUME, 0):
        pass


def test_a_file_is_locked_for_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with (
        file_locked(tmp_path / "data"),
        pytest.raises(HostBusy, match="still at work on the node"),
        file_locked(tmp_path / "data", 0),
    ):
        pytest.fail("locked twice")


async def test_the_fake_host_refuses_what_the_real_one_refuses() -> None:
    hosts: tuple[HostProtocol, HostProtocol] = (host := FakeHost(sizes={Path("/data"): 5}), Host(Path("/mounts")))
    assert len(hosts) == 2  # mypy compares their methods with the protocol

    attached = await host.attach(Path("/data"), VOLUME, "xfs")
    assert (attached.mount_path, attached.grown_to) == (f"/mounts/{VOLUME}", 5)
    await host.attach(Path("/data"), OTHER, "xfs")
    await host.bind(VOLUME, Path("/target"), read_only=True)
    with pytest.raises(TargetRefused):
        await host.bind(OTHER, Path("/target"), read_only=False)
    with pytest.raises(MountInUse):
        await host.detach(VOLUME)
    await host.unbind(VOLUME, Path("/target"))
    await host.detach(VOLUME)
    assert [found.volume_id for found in await host.found()] == [OTHER]


async def test_a_freeze_of_the_fake_host_expires_when_a_test_says_so() -> None:
    host = FakeHost(sizes={Path("/data"): 5})
    await host.attach(Path("/data"), VOLUME, "xfs")

    freeze = await host.freeze(VOLUME, 10)
    assert freeze.still_frozen()
    freeze.expired = True

    assert await freeze.release() is False
    assert await host.thaw_all() == []
