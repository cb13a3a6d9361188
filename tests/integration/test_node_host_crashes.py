"""A node's host operation that is killed before or after any of its steps is repeated to the same end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.host_builders import (
    MIB,
    ROOT,
    VOLUME,
    devices_of,
    enlarge,
    filesystem_size,
    mounted_at,
    mounts_below,
    volume_file,
)
from tests.integration.host_builders import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from worker.node.host.operations import HostOperations

#: Runs an operation of the host and kills itself with -9 before or after its n-th step.
KILLED = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from worker.node.host import filesystems, loop_ioctls, mounts
from worker.node.host.operations import HostOperations
base, file, target, volume, operation, at = sys.argv[1:]
left = int(at)
def moment():
    global left
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
def step(function):
    def counted(*arguments, **options):
        moment()
        result = function(*arguments, **options)
        moment()
        return result
    return counted
mounts.run = step(mounts.run)
filesystems.run = step(filesystems.run)
loop_ioctls.configure = step(loop_ioctls.configure)
loop_ioctls.set_capacity = step(loop_ioctls.set_capacity)
loop_ioctls.clear = step(loop_ioctls.clear)
host = HostOperations(Path(base))
volume = UUID(volume)
calls = {
    "attach": lambda: host.attach(Path(file), volume, "ext4"),
    "bind": lambda: host.bind(volume, Path(target), read_only=True),
    "unbind": lambda: host.unbind(volume, Path(target)),
    "detach": lambda: host.detach(volume),
}
calls[operation]()
"""


def killed(host: HostOperations, place: Path, operation: str, step: int) -> bool:
    arguments = [host.base_dir, place / "data", place / "target", VOLUME, operation, step]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    child = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode in (0, -9), child.stderr
    return child.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "steps"), [("attach", 14), ("bind", 4), ("unbind", 2), ("detach", 4)])
def test_an_operation_that_was_killed_at_any_step_is_repeated_to_the_same_end(
    host: HostOperations, place: Path, operation: str, steps: int
) -> None:
    file = volume_file(place, "ext4")
    for step in range(steps):
        if operation == "attach":
            size = enlarge(file, 8 * MIB)
        else:
            host.attach(file, VOLUME, "ext4")
        if operation == "unbind":
            host.bind(VOLUME, place / "target", read_only=True)

        was_killed = killed(host, place, operation, step)

        # The base directory is a mount already from the second attach on: its two steps are gone.
        assert was_killed or (operation == "attach" and step >= steps - 4), step
        if operation == "attach":
            assert host.attach(file, VOLUME, "ext4").grown_to == size
            assert filesystem_size(host) == size
            assert len(devices_of(file)) == 1
            assert len(mounted_at(host.mount_path(VOLUME))) == 1
            host.detach(VOLUME)
        if operation == "bind":
            host.bind(VOLUME, place / "target", read_only=True)
            assert [mount.is_read_only for mount in mounted_at(place / "target")] == [True]
        if operation in ("bind", "unbind"):
            host.unbind(VOLUME, place / "target")
            assert mounted_at(place / "target") == []
        host.detach(VOLUME)
        assert devices_of(file) == []
        assert mounted_at(host.mount_path(VOLUME)) == []
        assert mounts_below(host.base_dir) == []
