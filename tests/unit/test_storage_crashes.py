"""A process killed at any step leaves the old state or the new one, and the next attempt completes the operation."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.context import Fence, Grant
from domain.storage.file.driver import FileDriver

MIB = 1024 * 1024
VOLUME, SNAPSHOT, CLONE = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "123")
REPOSITORY = Path(__file__).parents[2]
OLD, NEW = b"old".ljust(MIB, b"o"), b"new".ljust(MIB, b"n")

# Forks for each line on stdin. The child exits right before or right after the n-th call of one function of `os`,
# counted from when the driver is ready. Sharing of blocks is disabled, so that there is a copy to be killed in.
CHILD = """
import asyncio, fcntl, json, os, sys, uuid
from pathlib import Path
from domain.storage.context import Fence, Grant
from domain.storage.file.driver import FileDriver

def unsupported(*args):
    raise OSError(95, "Operation not supported")

def die(root, operation, step, count, moment, arguments):
    real = getattr(os, step)

    def dying(*args, **more):
        nonlocal count
        count -= 1
        if count == 0 and moment == "before":
            os._exit(9)
        try:
            return real(*args, **more)
        finally:
            if count == 0:
                os._exit(9)

    driver = FileDriver(Path(root), threads=1)
    driver.prepare()
    setattr(os, step, dying)
    fcntl.ioctl = unsupported
    grant = Grant(uuid.uuid4(), Fence(2, 1), deadline=1.0, clock=lambda: 0.0)
    ids = [uuid.UUID(one) if isinstance(one, str) else one for one in arguments]
    asyncio.run(getattr(driver, operation)(*ids, grant))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        die(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ARGUMENTS: dict[str, tuple[UUID | int, ...]] = {
    "create": (VOLUME, 2 * MIB),
    "expand": (VOLUME, 2 * MIB),
    "delete": (VOLUME,),
    "take_snapshot": (VOLUME, SNAPSHOT),
    "restore_snapshot": (VOLUME, SNAPSHOT),
    "isolate": (VOLUME,),
    "clone_snapshot": (VOLUME, SNAPSHOT, CLONE, 2 * MIB),
    "delete_snapshot": (VOLUME, SNAPSHOT),
}
STEPS = {
    "create": ["pwrite", "link", "unlink 2"],
    "expand": ["pwrite", "ftruncate", "fsync"],
    "delete": ["pwrite", "rename", "rmdir"],
    "take_snapshot": ["copy_file_range", "fsync", "pwrite", "link", "unlink 2"],
    "restore_snapshot": ["copy_file_range", "fsync", "pwrite", "ftruncate 2", "fchmod", "replace", "fsync 4"],
    "isolate": ["copy_file_range", "fsync", "pwrite", "fchmod", "replace", "fsync 4"],
    "clone_snapshot": ["copy_file_range", "ftruncate 2", "pwrite", "link", "unlink 2"],
    "delete_snapshot": ["pwrite", "unlink", "fsync 2"],
}


def attempt(version: int, epoch: int) -> Grant:
    return Grant(uuid4(), Fence(version, epoch), deadline=1.0, clock=lambda: 0.0)


class CrashingProcess:
    """A process that forks a child for each operation and lets it exit at a given step."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def crash(self, root: Path, operation: str, step: str, moment: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        name, _, count = step.partition(" ")
        order = [str(root), operation, name, int(count or 1), moment, ARGUMENTS[operation]]
        self._process.stdin.write(json.dumps(order, default=str) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "9\n", "the child did not exit at the step"


@pytest.fixture(scope="module")
def crashing_process() -> Iterator[CrashingProcess]:
    command, pipe = [sys.executable, "-c", CHILD], subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as process:
        yield CrashingProcess(process)


def perform(driver: FileDriver, operation: str, grant: Grant) -> Awaitable[object]:
    result: Awaitable[object] = getattr(driver, operation)(*ARGUMENTS[operation], grant)
    return result


async def set_up(driver: FileDriver, operation: str) -> None:
    """Create what the operation needs: old bytes in the snapshot, new and longer ones in the volume."""
    if operation == "create":
        return
    data = Path(driver.path(VOLUME))
    await driver.create(VOLUME, MIB, attempt(1, 1))
    data.write_bytes(OLD)
    if operation not in ("take_snapshot", "expand", "delete"):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(1, 1))
    if operation == "restore_snapshot":
        data.write_bytes(NEW + NEW)


def content(driver: FileDriver) -> list[bytes | None]:
    """Return the bytes of volume, snapshot and clone."""
    data, clone = Path(driver.path(VOLUME)), Path(driver.path(CLONE))
    paths = (data, data.parent / "snapshots" / str(SNAPSHOT), clone)
    return [path.read_bytes() if path.exists() else None for path in paths]


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.tmp"), *(root / ".trash").iterdir()]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("operation", "step"), [(operation, step) for operation, steps in STEPS.items() for step in steps]
)
async def test_crash_leaves_the_old_or_new_state_and_the_next_attempt_completes_it(
    crashing_process: CrashingProcess, tmp_path: Path, operation: str, step: str, moment: str
) -> None:
    crashed, unharmed = (FileDriver(tmp_path / name, threads=1) for name in ("crashed", "unharmed"))
    for driver in (crashed, unharmed):
        driver.prepare()
        await set_up(driver, operation)
    old = content(unharmed)
    await perform(unharmed, operation, attempt(2, 1))
    new = content(unharmed)

    crashing_process.crash(crashed.root, operation, step, moment)

    assert content(crashed) in (old, new)
    await perform(crashed, operation, attempt(2, 2))
    assert content(crashed) == new
    assert (new == old) is (operation == "isolate")  # which keeps the bytes, in another file
    assert leftovers(crashed.root) == []
    for driver in (crashed, unharmed):
        await driver.close()


async def test_restore_yields_the_snapshots_bytes_at_the_current_size(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path, threads=1)
    driver.prepare()
    await set_up(driver, "restore_snapshot")
    await perform(driver, "restore_snapshot", attempt(2, 1))

    assert content(driver) == [OLD + bytes(MIB), OLD, None]
    await driver.close()
