"""A container writes to a volume while it grows, is snapshotted, and its worker and its node's agent are killed."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from domain.jobs.states import ENDED
from tests.acceptance.scale import LONG
from tests.acceptance.stack import Stack, running_stack
from tests.integration.host_builders import MIB, cleaned_up, require_loop_devices, require_tools
from tests.support.forked import Process
from tests.support.keys import SECRET
from tests.support.podman import Podman, own_podman
from tests.support.record_writer import RecordWriter, numbers, writing

NODE: Final = "web-1"
GIB: Final = 1024 * MIB
TIMEOUT_SECONDS: Final = 60.0
#: Within which the container sees that its volume has grown.
SEEN_SECONDS: Final = 5.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LONG, reason="a story of a minute; CISTERN_TEST_LONG=1 and `make compose-test` run it"),
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts volumes"),
]


def mount_storage(directory: Path) -> None:
    """Mount a file system that shares blocks at a directory."""
    image = directory.with_suffix(".image")
    directory.mkdir(exist_ok=True)
    image.touch()
    os.truncate(image, 16 * GIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)


def tell(line: str) -> None:
    """Show a measured figure, with `-s` or if the test fails."""
    sys.stdout.write(f"{line}\n")


class Host:
    """A stack with one worker, and the agent and the volume plugin of a node."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.folder = stack.cluster.folder
        self.socket = self.folder / "cistern.sock"
        self.agent: Process | None = None

    async def start_agent(self) -> None:
        self.agent = self.stack.cluster.start_worker(
            "worker.node",
            url=self.stack.storage,
            log=self.stack.log,
            CISTERN_NODE=NODE,
            CISTERN_NODE_DIR=str(self.folder / "mounts"),
        )
        pid = self.agent.pid
        await until(lambda: self._is_known(pid))

    async def _is_known(self, pid: int) -> bool:
        return pid in await self.stack.registered_pids()

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    def kill_worker(self) -> None:
        self.stack.kill(self.stack.workers[0])

    async def start_plugin(self) -> None:
        self.stack.cluster.start(
            ["api.cli", "docker-plugin", "--socket", str(self.socket), "--node", NODE, "--url", self.stack.address],
            self.stack.storage,
            self.stack.log,
            CISTERN_KEY=SECRET.text,
        )
        await until(self._plugin_is_there)

    async def _plugin_is_there(self) -> bool:
        return self.socket.exists()

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        response = await self.http.post(path, json=body)
        assert response.is_success, response.text
        return dict(response.json())

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.http.get(path)
        assert response.is_success, response.text
        return dict(response.json())

    async def succeeded(self, job: dict[str, Any]) -> dict[str, Any]:
        """Wait for the end of a job, which must succeed."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while job["status"] not in ENDED:
            assert time.monotonic() < deadline, job
            response = await self.http.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=5"})
            job = response.json()
        assert job["status"] == "succeeded", job
        return job

    async def is_running(self, job: dict[str, Any]) -> bool:
        return bool((await self.get(f"/jobs/{job['id']}"))["status"] == "running")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running_host() -> AsyncIterator[Host]:
    """A stack with the agent and the plugin of a node, whose mounts and devices are gone afterwards."""
    require_loop_devices()
    require_tools("mkfs.xfs", "xfs_growfs", "dd", "df")
    async with running_stack(workers=0, delay_ms=100) as stack, stack.client() as http:
        host = Host(stack, http)
        try:
            mount_storage(stack.cluster.volumes)
            stack.add_worker()
            await host.start_agent()
            await host.start_plugin()
            yield host
        finally:
            stack.cluster.clear()
            cleaned_up(stack.cluster.folder)


class Story:
    """What happens to a volume while a container writes to it."""

    def __init__(self, host: Host, volume_id: str, writer: RecordWriter) -> None:
        self.host = host
        self.address = f"/volumes/{volume_id}"
        self.writer = writer
        #: Of each snapshot the last record that was acknowledged when each was requested, and the next at its end.
        self.snapshots: dict[str, tuple[int, int]] = {}

    async def written(self, count: int = 20) -> None:
        """Wait until the container has written so many more records."""
        goal = self.writer.written + count

        async def is_reached() -> bool:
            assert self.writer.process.poll() is None, "the container has ended"
            return self.writer.written >= goal

        await until(is_reached)

    async def is_seen(self) -> bool:
        return bool(self.writer.sizes)

    async def sees(self, before: int, more: int, since: float, what: str) -> None:
        """Require that the container sees that so many bytes were added, in time."""

        async def is_seen() -> bool:
            return self.writer.size >= before + more * 9 // 10  # the file system keeps some for itself

        await until(is_seen)
        seconds = self.writer.sizes[-1][1] - since
        tell(f"{what}: seen after {seconds:.2f} s, {before:,} -> {self.writer.size:,} bytes")
        assert seconds <= SEEN_SECONDS

    async def take(self, name: str, consistency: str, *, killing_the_worker: bool = False) -> None:
        """Take a snapshot."""
        before = self.writer.written
        job = await self.host.post(f"{self.address}/snapshots", {"name": name})
        if killing_the_worker:
            await until(lambda: self.host.is_running(job))
            self.host.kill_worker()
        job = await self.host.succeeded(job)
        snapshot = await self.host.get(f"/snapshots/{job['snapshot_id']}")
        self.snapshots[name] = (before, self.writer.written + 1)
        tell(f"{name}: {snapshot['consistency']}, {job['attempt']} attempts, from record {before} on")
        assert snapshot["consistency"] == consistency

    async def expand(self, size: int) -> dict[str, Any]:
        return await self.host.post(f"{self.address}/expand", {"to": size})


async def grow_while_the_worker_dies(story: Story) -> None:
    """Expand, and kill the worker in the middle of it."""
    before = story.writer.size
    job = await story.expand(GIB + GIB // 4)
    await until(lambda: story.host.is_running(job))
    story.host.kill_worker()
    await story.host.succeeded(job)
    await story.sees(before, GIB // 4, time.monotonic(), "expanded while the worker was killed")


async def grow_while_the_agent_is_gone(story: Story) -> None:
    """Expand after the agent was killed; the next one finds that the file system has to grow."""
    before = story.writer.size
    story.host.kill_agent()
    await story.host.succeeded(await story.expand(GIB + GIB // 2))
    await story.take("without-an-agent", "crash")
    await story.written()
    assert story.writer.size == before
    started = time.monotonic()
    await story.host.start_agent()
    await story.sees(before, GIB // 4, started, "expanded while the agent was gone, from its start on")


async def grow_by_night(story: Story, podman: Podman) -> None:
    """Fill the volume, kill worker and agent, and run the schedule of the night."""
    fill = f"dd if=/dev/zero of=/data/filling bs={MIB} count=1300 conv=fsync status=none"
    await asyncio.to_thread(podman.run, "exec", "writer", "/bin/sh", "-c", fill)
    story.host.kill_agent()
    story.host.kill_worker()
    await story.host.start_agent()
    await until(lambda: is_reported(story, 1300 * MIB))
    schedule = {"name": "night", "cron": "0 3 * * *", "action": "bulk.expand", "params": {"policy": "autogrow"}}
    made = await story.host.post("/schedules", schedule)
    before = story.writer.size
    job = await story.host.succeeded(await story.host.post(f"/schedules/{made['id']}/run"))
    items = (await story.host.get(f"/jobs/{job['id']}/items"))["items"]
    assert job["progress"]["succeeded"] == 1, str(items)
    await story.sees(before, GIB // 2, time.monotonic(), "grown by the nightly run")


async def is_reported(story: Story, used: int) -> bool:
    return bool((await story.host.get(story.address))["filesystem_used"] > used)


async def records_of_clone(podman: Podman, snapshot: str) -> int:
    """Return how many records a snapshot has, as a container sees them in a clone that it cannot write to."""
    clone = f"clone-of-{snapshot}"
    await asyncio.to_thread(
        podman.run, "volume", "create", "--driver=cistern", "-o", f"from_snapshot=data/{snapshot}", clone
    )
    options = ["--rm", "--network=none", f"--volume={clone}:/data:ro"]
    return numbers(await asyncio.to_thread(podman.run, "run", *options, "shell", "/bin/cat", "/data/records"))


async def test_no_record_is_lost_while_the_volume_grows_and_is_snapshotted_and_worker_and_agent_are_killed(
    tmp_path: Path,
) -> None:
    async with running_host() as host:
        with own_podman(host.socket, tmp_path) as podman:
            options = ["-o", "size=1GiB", "-o", "filesystem=xfs", "-o", "autogrow=80:50%:4GiB"]
            await asyncio.to_thread(podman.run, "volume", "create", "--driver=cistern", *options, "data")
            (volume,) = (await host.get("/volumes"))["items"]
            with writing(podman, "data", tmp_path / "writer.log") as writer:
                story = Story(host, volume["id"], writer)
                await until(story.is_seen)
                await story.written()
                await grow_while_the_worker_dies(story)
                await story.take("live", "application")
                await story.take("worker-killed", "application", killing_the_worker=True)
                await grow_while_the_agent_is_gone(story)
                await grow_by_night(story, podman)
                await story.written()
            found = numbers(await asyncio.to_thread(podman.shell, "data", "cat /data/records"))
            assert found in (writer.written, writer.written + 1)
            for name, (first, last) in story.snapshots.items():
                found = await records_of_clone(podman, name)
                tell(f"{name}: {found} records")
                assert first <= found <= last
            tell(f"{writer.written} records were acknowledged")
