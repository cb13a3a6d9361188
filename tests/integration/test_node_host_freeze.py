"""A frozen file system is thawed whatever dies, and a lost volume is let go of whoever uses it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

import pytest

from domain.storage.filesystems import FILESYSTEMS
from tests.integration.host_builders import MIB, OTHER, ROOT, VOLUME, devices_of, mounted_at, volume_file
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host import filesystems, freeze
from worker.node.host.errors import AlreadyFrozen, DeviceInUse, FreezeFailed
from worker.node.host.freeze import Freeze
from worker.node.host.host import Host
from worker.node.host.operations import HostOperations

LONG = 60.0


@pytest.fixture
def mounted(host: HostOperations, place: Path) -> Path:
    host.attach(volume_file(place, "ext4"), VOLUME, "ext4")
    return host.mount_path(VOLUME)


class Writer:
    """A process that writes a file, which it can only while the file system is not frozen."""

    def __init__(self, directory: Path) -> None:
        self._child = subprocess.Popen(["sh", "-c", f"echo written > '{directory}/written'"])

    def is_blocked(self) -> bool:
        try:
            self._child.wait(0.3)
        except subprocess.TimeoutExpired:
            return True
        return False

    def wait(self, seconds: float) -> int:
        return self._child.wait(seconds)


def written_out(file: RawIOBase, data: bytes) -> None:
    file.write(data)
    os.fsync(file.fileno())


def stop(pid: int) -> None:
    """Stop a child process, and wait until it has stopped: its threads go on until one of them takes the signal."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@contextmanager
def agent(directory: Path, seconds: float) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Another process that holds a freeze; yield it and the process id of its guard."""
    script = (
        "import sys; from pathlib import Path; from worker.node.host.freeze import Freeze\n"
        "freeze = Freeze(Path(sys.argv[1]), float(sys.argv[2])); freeze.start()\n"
        "print(freeze.guard_pid, flush=True); sys.stdin.readline(); print(freeze.release(), flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(directory), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_nothing_is_written_while_a_file_system_is_frozen(host: HostOperations, place: Path, filesystem: str) -> None:
    host.attach(volume_file(place, filesystem), VOLUME, filesystem)
    held = Freeze(host.mount_path(VOLUME), LONG)

    held.start()
    writer = Writer(host.mount_path(VOLUME))

    assert writer.is_blocked()
    assert held.still_frozen()
    assert held.release() is True
    assert writer.wait(5) == 0
    assert not held.still_frozen()
    assert held.release() is True, "it may be asked again"


def test_a_freeze_ends_by_itself_in_time(mounted: Path) -> None:
    held = Freeze(mounted, 0.5)
    started = time.monotonic()
    held.start()

    assert Writer(mounted).wait(5) == 0

    assert 0.4 < time.monotonic() - started < 3
    assert held.release() is False
    assert not held.still_frozen()


def test_a_file_system_that_somebody_else_thaws_was_not_frozen_the_whole_time(mounted: Path) -> None:
    held = Freeze(mounted, LONG)
    held.start()

    subprocess.run(["fsfreeze", "--unfreeze", mounted], check=True)

    assert held.release() is False


def test_a_frozen_file_system_is_not_frozen_again(mounted: Path) -> None:
    held = Freeze(mounted, LONG)
    held.start()

    with pytest.raises(AlreadyFrozen, match="is already frozen"):
        Freeze(mounted, LONG).start()

    assert held.still_frozen()
    assert held.release() is True


def test_a_file_system_that_cannot_be_frozen_is_an_error_with_the_reason() -> None:
    with pytest.raises(FreezeFailed, match="/proc could not be frozen: Operation not supported"):
        Freeze(Path("/proc"), LONG).start()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_file_system_whose_freeze_is_abandoned_is_thawed(mounted: Path, moment: str) -> None:
    held = Freeze(mounted, LONG)
    if moment == "before":
        held.abandon()
    with suppress(FreezeFailed):  # it may have been thawed before anybody saw it frozen
        held.start()
    if moment == "after":
        held.abandon()

    assert Writer(mounted).wait(5) == 0


async def test_a_file_system_is_thawed_when_the_task_that_freezes_it_is_cancelled(
    place: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, go_on = threading.Event(), threading.Event()
    start = Freeze.start

    def slowly(held: Freeze) -> None:
        start(held)
        frozen.set()
        go_on.wait(LONG)

    monkeypatch.setattr(Freeze, "start", slowly)
    task = asyncio.ensure_future(Host(place / "mounts").freeze(VOLUME, LONG))
    await asyncio.to_thread(frozen.wait, LONG)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await asyncio.to_thread(Writer(mounted).wait, 5) == 0
    go_on.set()


def test_a_file_system_is_thawed_when_the_agent_is_killed(mounted: Path) -> None:
    with agent(mounted, LONG) as (child, _):
        writer = Writer(mounted)
        assert writer.is_blocked()

        child.kill()

        assert writer.wait(5) == 0


def test_a_file_system_is_thawed_in_time_while_the_agent_is_stopped(mounted: Path) -> None:
    with agent(mounted, 1.0) as (child, _):
        stop(child.pid)

        assert Writer(mounted).wait(5) == 0

        child.send_signal(signal.SIGCONT)
        assert child.communicate("\n")[0] == "False\n"


def test_a_file_system_is_thawed_when_the_guard_is_killed(mounted: Path) -> None:
    held = Freeze(mounted, LONG)
    held.start()
    writer = Writer(mounted)
    assert writer.is_blocked()

    assert held.guard_pid
    os.kill(held.guard_pid, signal.SIGKILL)

    assert writer.wait(5) == 0
    assert held.release() is False


def test_a_file_system_is_thawed_when_the_guard_is_stopped(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "MARGIN_SECONDS", 0.2)
    held = Freeze(mounted, 0.5)
    held.start()

    assert held.guard_pid
    stop(held.guard_pid)
    try:
        assert Writer(mounted).wait(5) == 0
        assert held.release() is False
        assert not Path(f"/proc/{held.guard_pid}").exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(held.guard_pid, signal.SIGKILL)


def test_what_is_left_frozen_is_thawed_at_the_start(host: HostOperations, mounted: Path) -> None:
    with agent(mounted, LONG) as (child, guard):
        os.kill(guard, signal.SIGSTOP)
        stop(child.pid)
        os.kill(guard, signal.SIGKILL)
        child.kill()
        writer = Writer(mounted)
        assert writer.is_blocked()

        assert host.thaw_all() == [VOLUME]

        assert writer.wait(5) == 0
        assert host.thaw_all() == []


def test_a_frozen_volume_is_detached_and_can_be_attached_again(
    host: HostOperations, place: Path, mounted: Path
) -> None:
    subprocess.run(["fsfreeze", "--freeze", mounted], check=True)

    host.detach(VOLUME)

    assert devices_of(place / "data") == []
    host.attach(place / "data", VOLUME, "ext4")
    assert Writer(mounted).wait(5) == 0


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_lost_volume_is_let_go_of_while_a_process_writes_to_it(
    host: HostOperations, place: Path, filesystem: str
) -> None:
    file = volume_file(place, filesystem)
    host.attach(file, VOLUME, filesystem)
    host.bind(VOLUME, place / "target", read_only=False)
    with (place / "target/file").open("wb", buffering=0) as holder:
        holder.write(b"x" * MIB)

        lost = host.release_lost(VOLUME)

        assert lost.problems == ()
        assert not lost.is_gone
        assert mounted_at(host.mount_path(VOLUME)) == mounted_at(place / "target") == []
        assert host.found() == []
        assert lost.writes_stopped
        with pytest.raises(OSError, match=r"Input/output error|Read-only file system"):
            written_out(holder, b"x" * MIB)
    assert host.release_lost(VOLUME).is_gone
    assert devices_of(file) == []


def test_nothing_is_written_through_the_device_of_a_lost_volume(host: HostOperations, place: Path) -> None:
    file = volume_file(place, None)
    device = host.attach(file, VOLUME, None).device
    with Path(device).open("r+b", buffering=0) as holder:
        written_out(holder, b"before")

        assert host.release_lost(VOLUME).writes_stopped

        with pytest.raises(OSError, match=r"Input/output error|No space left on device"):
            written_out(holder, b"after!")
    assert file.read_bytes()[:12] == b"before".ljust(12, b"\0")
    assert devices_of(file) == []


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_a_lost_volume_that_is_frozen_is_let_go_of(host: HostOperations, place: Path, filesystem: str) -> None:
    host.attach(volume_file(place, filesystem), VOLUME, filesystem)
    subprocess.run(["fsfreeze", "--freeze", host.mount_path(VOLUME)], check=True)

    lost = host.release_lost(VOLUME)

    assert (lost.is_gone, lost.writes_stopped, lost.problems) == (True, True, ())
    assert devices_of(place / "data") == []


def test_a_new_file_of_a_lost_volume_can_be_attached_while_the_old_one_is_still_open(
    host: HostOperations, place: Path, mounted: Path
) -> None:
    with (mounted / "file").open("w"):
        host.release_lost(VOLUME)
        volume_file(place, "ext4", "new").replace(place / "data")

        host.attach(place / "data", VOLUME, "ext4")

        assert (host.mount_path(VOLUME) / "lost+found").is_dir()
        assert len(host.found()) == 1


def test_a_file_that_was_let_go_of_is_attached_again_only_after_its_last_user_has_ended(
    host: HostOperations, place: Path, mounted: Path
) -> None:
    with (mounted / "file").open("w"):
        host.release_lost(VOLUME)

        with pytest.raises(DeviceInUse, match="a process still has it open"):
            host.attach(place / "data", VOLUME, "ext4")

    assert host.attach(place / "data", VOLUME, "ext4").mount_path == str(mounted)


def test_letting_go_of_a_volume_that_is_not_here_does_nothing(host: HostOperations, place: Path) -> None:
    lost = host.release_lost(OTHER)

    assert (lost.is_gone, lost.writes_stopped, lost.problems) == (True, True, ())


def test_thawing_tells_whether_it_was_frozen(mounted: Path) -> None:
    assert filesystems.thaw(mounted) is False
    subprocess.run(["fsfreeze", "--freeze", mounted], check=True)
    assert filesystems.thaw(mounted) is True
