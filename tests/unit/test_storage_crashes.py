"""A process that dies at any step leaves the old state or the new one, and the next attempt puts it right."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.driver import Fence, Grant
from domain.storage.file import FileDriver

MIB = 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")
REPOSITORY = Path(__file__).parents[2]

# Dies right before or right after the n-th call of one function of `os` (or of Path, for the rename).
CHILD = """
import asyncio, os, sys, uuid
from pathlib import Path
from domain.storage.driver import Fence, Grant
from domain.storage.file import FileDriver

root, operation, step, moment = sys.argv[1:]
owner = Path if step == "rename" else os
real = getattr(owner, step)

def dying(*args, **more):
    if moment == "before":
        os._exit(9)
    real(*args, **more)
    os._exit(9)

driver = FileDriver(Path(root), threads=1)
driver.prepare()
setattr(owner, step, dying)
grant = Grant(uuid.uuid4(), Fence(2, 1), deadline=1.0, clock=lambda: 0.0)
sized = (2 * 1024 * 1024,) if operation != "delete" else ()
asyncio.run(getattr(driver, operation)(uuid.UUID(int=%d), *sized, grant))
"""
STEPS = {
    "create": ["pwrite", "link", "unlink"],
    "expand": ["pwrite", "ftruncate", "fsync"],
    "delete": ["pwrite", "rename", "rmdir"],
}
OLD_AND_NEW = {"create": (None, 2 * MIB), "expand": (MIB, 2 * MIB), "delete": (MIB, None)}


def attempt(version: int, rings: int) -> Grant:
    return Grant(uuid4(), Fence(version, rings), deadline=1.0, clock=lambda: 0.0)


def die(root: Path, operation: str, step: str, moment: str) -> None:
    code = CHILD % VOLUME.int
    command = [sys.executable, "-c", code, str(root), operation, step, moment]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr


async def size_of(driver: FileDriver) -> int | None:
    usage = await driver.measure(VOLUME)
    return usage.size if usage else None


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.tmp"), *(root / ".trash").iterdir()]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("operation", "step"), [(operation, step) for operation, steps in STEPS.items() for step in steps]
)
async def test_a_crash_leaves_the_old_or_the_new_and_the_next_attempt_completes_it(
    tmp_path: Path, operation: str, step: str, moment: str
) -> None:
    driver = FileDriver(tmp_path, threads=1)
    if operation != "create":
        await driver.create(VOLUME, MIB, attempt(1, 1))
    old, new = OLD_AND_NEW[operation]

    die(tmp_path, operation, step, moment)

    assert await size_of(driver) in (old, new)
    sized = (2 * MIB,) if operation != "delete" else ()
    await getattr(driver, operation)(VOLUME, *sized, attempt(2, 2))
    assert await size_of(driver) == new
    assert leftovers(tmp_path) == []
    await driver.close()
