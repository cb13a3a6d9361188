"""The last part of ``cistern demo``: a process writes to a volume while all that can happen to it happens."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from api.cli.demo_api import DemoApi, DemoFailed, Job
from api.cli.processes import Child
from api.cli.record_writer import RECORD
from api.cli.stack import NODE
from domain.tasks import cancel_and_wait

_MIB: Final = 2**20
_SIZE: Final = 320 * _MIB
_GROWN: Final = 480 * _MIB
_AUTOGROW: Final = {"usage_above": 80, "percent": 50, "up_to": 640 * _MIB}
#: With what else the process has written, more than 80 % of the volume.
_FILLING: Final = 200 * _MIB
#: Written before each step goes on.
_RECORDS: Final = 50
_TIMEOUT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.05


class Writer:
    """A process that writes records, and what it has said so far."""

    def __init__(self, process: Process) -> None:
        self._process = process
        #: Number of the last record that was synced.
        self.written = 0
        #: Size of its file system in bytes.
        self.size = 0

    async def follow(self) -> None:
        """Read what it says, until it ends."""
        assert self._process.stdout is not None  # noqa: S101 (for mypy)
        async for line in self._process.stdout:
            self.written, self.size = map(int, line.split())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds.

        Raises:
            DemoFailed: the process has ended before.
        """
        while not condition():
            if self._process.returncode is not None:
                raise DemoFailed(f"the process that writes has ended after record {self.written}")
            await asyncio.sleep(_POLL_SECONDS)

    async def go_on(self) -> None:
        """Wait until it has written some records more."""
        goal = self.written + _RECORDS
        await self.until(lambda: self.written >= goal)


@asynccontextmanager
async def _writing(path: Path) -> AsyncIterator[Writer]:
    """Run a writer; kill it at the end of the block."""
    command = (sys.executable, "-m", "api.cli.record_writer", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, start_new_session=True)
    writer = Writer(process)
    following = asyncio.create_task(writer.follow())
    try:
        yield writer
        process.kill()
        await following
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await cancel_and_wait([following])


class VolumeInUse:
    """Uses a volume on this machine, and returns what became of it."""

    def __init__(self, api: DemoApi, processes: Mapping[str, Child], data_dir: Path) -> None:
        self._api = api
        self._processes = processes
        self._data_dir = data_dir

    async def run(self) -> str:
        """Run all steps, and return a summary.

        Raises:
            DemoFailed: a record is missing, or a job is not as expected.
        """
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            volume_id = await self._create({"size": _SIZE, "filesystem": "xfs", "autogrow": _AUTOGROW}, "in-use")
            attachment, path = await self._attach(volume_id, {})
            async with _writing(path / "records") as writer:
                await writer.go_on()
                size, first = writer.size, writer.written
                job = await self._ended("POST", f"/volumes/{volume_id}/snapshots", {"name": "meanwhile"})
                last = writer.written + 1
                await self._grow_by_night(volume_id, path, writer)
                await writer.go_on()
            found = _records(path / "records")
            if found not in (writer.written, writer.written + 1):
                raise DemoFailed(f"{writer.written} records were acknowledged, and {found} are there")
            in_snapshot = await self._records_of(str(job["snapshot_id"]))
            if not first <= in_snapshot <= last:
                raise DemoFailed(f"the snapshot has {in_snapshot} records, and not {first} to {last}")
            await self._ended("DELETE", f"/volumes/{volume_id}/attachments/{attachment}")
        return (
            f"A process wrote {writer.written:,} records to a mounted volume through a snapshot, a nightly growth and "
            f"kill -9 of a worker and of the node's agent: every acknowledged record is there, the snapshot has the "
            f"first {in_snapshot:,}, and df has grown from {size // _MIB} to {writer.size // _MIB} MiB."
        )

    async def _grow_by_night(self, volume_id: str, path: Path, writer: Writer) -> None:
        """Fill the volume, run the schedule of the night, and kill a worker and the agent of the node meanwhile."""
        _fill(path / "filling")
        self._kill(NODE)  # the next one reports at once, and need not be waited for
        size = writer.size
        await self._api.until(f"/volumes/{volume_id}", lambda volume: (volume["filesystem_used"] or 0) > _FILLING)
        schedules = (await self._api.get("/schedules"))["items"]
        nightly = next(one["id"] for one in schedules if one["name"] == "nightly-expand")
        job = await self._api.request("POST", f"/schedules/{nightly}/run", headers={"Prefer": "wait=0"})
        self._kill("worker.1")
        self._kill(NODE)
        await self._api.succeeded(job)
        if (grown := (await self._api.get(f"/volumes/{volume_id}"))["size"]) != _GROWN:
            raise DemoFailed(f"the nightly run has left the volume with {grown} bytes, not grown it to {_GROWN}")
        await writer.until(lambda: writer.size > size)

    async def _records_of(self, snapshot_id: str) -> int:
        """Return how many records a clone of a snapshot has."""
        clone_id = await self._create({"from_snapshot": snapshot_id}, "clone")
        wanted = {"mode": "ro", "path": str(self._data_dir.resolve() / "clone")}
        attachment, path = await self._attach(clone_id, wanted)
        count = _records(path / "records")
        await self._ended("DELETE", f"/volumes/{clone_id}/attachments/{attachment}")
        return count

    async def _create(self, wanted: Mapping[str, object], name: str) -> str:
        return str((await self._ended("POST", "/volumes", {"name": name, **wanted}))["volume_id"])

    async def _attach(self, volume_id: str, wanted: Mapping[str, object]) -> tuple[str, Path]:
        """Attach a volume, and return the attachment and where it is mounted."""
        await self._api.until("/nodes", lambda nodes: any(node["is_alive"] for node in nodes["items"]))
        body = {"node": NODE, "holder": "demo", **wanted}
        result = (await self._ended("POST", f"/volumes/{volume_id}/attachments", body))["result"]
        return result["attachment_id"], Path(result["path"])

    async def _ended(self, method: str, path: str, body: object = None) -> Job:
        return await self._api.succeeded(await self._api.request(method, path, body))

    def _kill(self, name: str) -> None:
        """Kill a process of the stack, which is started again."""
        if self._processes[name].alive():
            self._processes[name].send(signal.SIGKILL)


def _fill(path: Path) -> None:
    """Allocate what makes the file system full enough, without writing it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _FILLING)


def _records(path: Path) -> int:
    """Return how many records a file has.

    Raises:
        DemoFailed: they are not the first ones, whole and in order.
    """
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line != RECORD.format(number):
            raise DemoFailed(f"{path}: record {number} is {line!r}")
    return len(lines)
