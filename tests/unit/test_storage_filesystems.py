"""The file driver makes file systems in new volumes and grows them, with the tools of each file system."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.storage.context import Fence
from domain.storage.errors import FenceRefused, FilesystemFailed, StorageBusy, VolumeInUse, VolumeMissing
from domain.storage.file import filesystem as tools
from domain.storage.file import leases
from domain.storage.file.driver import FileDriver
from domain.storage.filesystems import FILESYSTEMS
from tests.unit.file_builders import CLONE, MIB, VOLUME, attempt, data, empty_driver, files, stored_size

GIB = 1024 * MIB
driver = pytest.fixture(empty_driver)
REPOSITORY = Path(__file__).parents[2]
CHECK = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check", "--readonly"]}
every_filesystem = pytest.mark.parametrize("filesystem", FILESYSTEMS)

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name, path=tools._SBIN) for name in ("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")),
    reason="the tools of the file systems are not installed (Debian: e2fsprogs, xfsprogs, btrfs-progs)",
)


def run(*command: str | Path) -> str:
    program = shutil.which(command[0], path=f"{tools._SBIN}:/usr/bin")
    assert program is not None
    completed = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=True)
    return completed.stdout


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def put_tool(folder: Path, name: str, script: str) -> None:
    """Put a tool into a folder for the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tools are found before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


class TestMaking:
    @every_filesystem
    async def test_new_volume_has_a_sound_file_system_with_its_id_and_without_a_label(
        self, driver: FileDriver, filesystem: str
    ) -> None:
        assert await driver.create(VOLUME, GIB, attempt(), filesystem=filesystem) == GIB

        assert stored_size(driver, filesystem) == GIB == data(driver).stat().st_size
        run(*CHECK[filesystem], data(driver))
        found = run("blkid", "-p", "-o", "export", data(driver)).splitlines()
        assert {f"TYPE={filesystem}", f"UUID={VOLUME}"} <= set(found)
        assert not any(line.startswith("LABEL=") for line in found)
        assert files(driver) == {f"{VOLUME}/data"}

    @pytest.mark.parametrize(("filesystem", "most"), [("ext4", 8 * MIB), ("xfs", MIB), ("btrfs", 8 * MIB)])
    async def test_volume_of_100_gibibytes_stays_sparse(self, driver: FileDriver, filesystem: str, most: int) -> None:
        await driver.create(VOLUME, 100 * GIB, attempt(), filesystem=filesystem)

        assert allocated(data(driver)) < most

    @every_filesystem
    async def test_smallest_size_is_enough_and_one_byte_less_is_refused(
        self, driver: FileDriver, filesystem: str
    ) -> None:
        smallest = FILESYSTEMS[filesystem]
        with pytest.raises(FilesystemFailed, match=f"{filesystem} needs {smallest} bytes"):
            await driver.create(VOLUME, smallest - 1, attempt(), filesystem=filesystem)
        assert files(driver) == set()

        assert await driver.create(VOLUME, smallest, attempt(), filesystem=filesystem) == smallest

    async def test_smallest_ext4_has_a_journal(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, FILESYSTEMS["ext4"], attempt(), filesystem="ext4")

        assert "has_journal" in run("dumpe2fs", "-h", data(driver))

    async def test_unknown_file_system_is_refused(self, driver: FileDriver) -> None:
        with pytest.raises(FilesystemFailed, match="'zfs' is not among"):
            await driver.create(VOLUME, GIB, attempt(), filesystem="zfs")

    async def test_repetition_keeps_what_was_written_since(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 16 * MIB, attempt(1, 1), filesystem="ext4")
        run("debugfs", "-w", "-R", f"write {__file__} kept", data(driver))
        before = data(driver).read_bytes()

        assert await driver.create(VOLUME, 16 * MIB, attempt(1, 2), filesystem="ext4") == 16 * MIB

        assert data(driver).read_bytes() == before

    async def test_missing_tool_is_named_with_its_package(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tools, "_SBIN", "/nowhere")
        monkeypatch.setenv("PATH", "/nowhere")

        with pytest.raises(FilesystemFailed, match=r"mkfs\.xfs is not installed .*xfsprogs"):
            await driver.create(VOLUME, GIB, attempt(), filesystem="xfs")
        assert files(driver) == set()

    async def test_what_a_tool_says_is_in_the_error_and_nothing_is_left(
        self, driver: FileDriver, bin_folder: Path
    ) -> None:
        put_tool(bin_folder, "mkfs.ext4", "echo no such luck; echo at all >&2; exit 7")

        with pytest.raises(FilesystemFailed, match=r"mkfs\.ext4 ended with 7: no such luck at all"):
            await driver.create(VOLUME, GIB, attempt(), filesystem="ext4")
        assert files(driver) == set()

    async def test_attempt_overtaken_while_a_tool_works_publishes_nothing(
        self, driver: FileDriver, bin_folder: Path
    ) -> None:
        record = driver.root / ".fences" / str(VOLUME)
        put_tool(bin_folder, "mkfs.ext4", f"printf '%020d %020d\\n' 9 1 > {record}")

        with pytest.raises(FenceRefused):
            await driver.create(VOLUME, GIB, attempt(), filesystem="ext4")
        assert files(driver) == set()


@pytest.fixture
async def reserving(tmp_path: Path) -> AsyncIterator[FileDriver]:
    """A driver that reserves all blocks."""
    driver = FileDriver(tmp_path / "reserved", threads=1, reserve=True)
    driver.prepare()
    yield driver
    await driver.close()


@every_filesystem
async def test_all_blocks_of_a_volume_with_a_file_system_are_reserved_if_asked_for(
    reserving: FileDriver, filesystem: str
) -> None:
    size = FILESYSTEMS[filesystem]
    await reserving.create(VOLUME, size, attempt(), filesystem=filesystem)

    assert allocated(data(reserving)) >= size
    run(*CHECK[filesystem], data(reserving))


@pytest.fixture
async def grown(driver: FileDriver) -> FileDriver:
    """A driver with an ext4 volume that has become larger than its file system, with a file in it."""
    await driver.create(VOLUME, 64 * MIB, attempt(), filesystem="ext4")
    run("debugfs", "-w", "-R", f"write {sys.executable} kept", data(driver))
    await driver.expand(VOLUME, GIB, attempt(2))
    return driver


async def require_grown(driver: FileDriver, size: int = GIB) -> None:
    assert stored_size(driver, "ext4") == size
    run("e2fsck", "-f", "-n", data(driver))
    copied = driver.root / "kept"
    run("debugfs", "-R", f"dump kept {copied}", data(driver))
    assert copied.read_bytes() == Path(sys.executable).read_bytes()


class TestGrowing:
    async def test_ext4_grows_to_the_size_of_its_volume_and_keeps_its_files(self, grown: FileDriver) -> None:
        assert stored_size(grown, "ext4") == 64 * MIB

        await grown.grow_filesystem(VOLUME, "ext4", attempt(3))
        await grown.grow_filesystem(VOLUME, "ext4", attempt(3))

        await require_grown(grown)
        assert allocated(data(grown)) < 32 * MIB

    @pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
    async def test_others_are_left_to_grow_when_they_are_mounted(self, driver: FileDriver, filesystem: str) -> None:
        await driver.create(VOLUME, GIB, attempt(), filesystem=filesystem)
        await driver.expand(VOLUME, 2 * GIB, attempt(2))

        await driver.grow_filesystem(VOLUME, filesystem, attempt(3))

        assert stored_size(driver, filesystem) == GIB

    async def test_volume_that_is_open_is_not_touched(self, grown: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "IN_USE_SECONDS", 0.05)
        with data(grown).open("rb"), pytest.raises(VolumeInUse):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3))

        assert stored_size(grown, "ext4") == 64 * MIB

    async def test_stale_attempt_does_not_touch_the_file_system(self, grown: FileDriver) -> None:
        await grown.seal(VOLUME, attempt(9))

        with pytest.raises(FenceRefused):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3))

        assert stored_size(grown, "ext4") == 64 * MIB

    async def test_absent_volume_is_missing(self, driver: FileDriver) -> None:
        with pytest.raises(VolumeMissing):
            await driver.grow_filesystem(CLONE, "ext4", attempt(3))

    async def test_damage_that_a_person_must_decide_on_is_left_alone(self, grown: FileDriver) -> None:
        run("debugfs", "-w", "-R", "clri <2>", data(grown))  # the root directory

        with pytest.raises(FilesystemFailed, match=r"e2fsck ended with 4: .*UNEXPECTED INCONSISTENCY"):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3))

        assert stored_size(grown, "ext4") == 64 * MIB

    async def test_volume_without_such_a_file_system_is_refused(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 16 * MIB, attempt())
        assert stored_size(driver, "ext4") is None

        with pytest.raises(FilesystemFailed, match="e2fsck ended with 8"):
            await driver.grow_filesystem(VOLUME, "ext4", attempt(3))


class TestKilled:
    @pytest.mark.parametrize("tool", ["e2fsck", "resize2fs"])
    async def test_growth_goes_on_after_a_tool_was_killed(self, grown: FileDriver, bin_folder: Path, tool: str) -> None:
        put_tool(bin_folder, tool, "kill -KILL $$")
        with pytest.raises(FilesystemFailed, match=f"{tool} ended with -9: it said nothing"):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 1))
        shutil.rmtree(bin_folder)

        await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 2))

        await require_grown(grown)

    async def test_what_an_interrupted_growth_has_left_is_corrected(self, grown: FileDriver, bin_folder: Path) -> None:
        # A resize inode that is not valid yet is what resize2fs leaves if it is killed at one moment.
        script = "/usr/sbin/debugfs -w -R 'clri <7>' $1; kill -KILL $$"
        put_tool(bin_folder, "resize2fs", script)
        with pytest.raises(FilesystemFailed):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 1))
        with pytest.raises(subprocess.CalledProcessError):
            run("e2fsck", "-f", "-p", "-n", data(grown))
        shutil.rmtree(bin_folder)

        await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 2))

        await require_grown(grown)
        assert os.listxattr(data(grown)) == []

    async def test_growth_of_a_killed_worker_ends_before_the_next_attempt_begins(
        self, grown: FileDriver, bin_folder: Path, tmp_path: Path
    ) -> None:
        begun, gate = tmp_path / "begun", tmp_path / "gate"
        os.mkfifo(begun)
        os.mkfifo(gate)
        put_tool(bin_folder, "resize2fs", f"echo > {begun}; read _ < {gate}; exec /usr/sbin/resize2fs $1")
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, str(grown.root), cwd=REPOSITORY, env={**os.environ}
        )
        await asyncio.to_thread(begun.read_text)
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        shutil.rmtree(bin_folder)

        with pytest.raises(StorageBusy):
            await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 2))
        with pytest.raises(StorageBusy):
            await grown.seal(VOLUME, attempt(3, 2))
        gate.write_text("\n")
        async with asyncio.timeout(30):
            while True:
                try:
                    await grown.grow_filesystem(VOLUME, "ext4", attempt(3, 2))
                    break
                except StorageBusy:
                    continue

        await require_grown(grown)


#: A worker that grows the file system of a volume in a root.
WORKER = f"""
import asyncio, sys, uuid
from pathlib import Path
from domain.storage.context import Fence, Grant
from domain.storage.file.driver import FileDriver
driver = FileDriver(Path(sys.argv[1]), threads=1)
driver.prepare()
grant = Grant(uuid.uuid4(), {Fence(3, 1)}, deadline=1.0, clock=lambda: 0.0)
asyncio.run(driver.grow_filesystem(uuid.UUID("{VOLUME}"), "ext4", grant))
"""
