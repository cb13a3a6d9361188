"""The process of `cistern csi`: on a socket, beside an API over HTTP, until a signal ends it."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import pytest

from api.csi import csi_pb2 as csi
from tests.unit.csi_client import STUBS, new_volume, status
from tests.unit.fake_cistern import FakeCistern


class _Server(ThreadingHTTPServer):
    """Answers with what an API in memory says, and keeps the headers."""

    def __init__(self) -> None:
        self.cistern = FakeCistern()
        self.keys: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        parts, length = urlsplit(self.path), int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        answer = self.server.cistern.request(self.command, parts.path, params=dict(parse_qsl(parts.query)), body=body)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 (http.server calls them so)

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""


@pytest.fixture
def api() -> Iterator[_Server]:
    server = _Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@asynccontextmanager
async def running(api: _Server, endpoint: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[Any]]]:
    """Run the command, and return its process and stubs when it answers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "csi", "--endpoint", endpoint),
        env={
            **os.environ,
            "CISTERN_URL": f"http://127.0.0.1:{api.server_address[1]}",
            "CISTERN_KEY": "the-key",
            "CISTERN_NODE": "node-2",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stubs = [stub(channel) for stub in STUBS]
            await stubs[0].Probe(csi.ProbeRequest(), wait_for_ready=True, timeout=60)
            yield process, stubs
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_command_serves_until_it_is_told_to_end(api: _Server, tmp_path: Path) -> None:
    async with running(api, f"unix://{tmp_path}/csi.sock") as (process, (_, controller, node)):
        volume = (await controller.CreateVolume(new_volume())).volume
        info = await node.NodeGetInfo(csi.NodeGetInfoRequest())
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()

    assert [*api.cistern.volumes] == [volume.volume_id]
    assert (info.node_id, api.keys) == ("node-2", {"Bearer the-key"})
    assert (process.returncode, b"csi.started" in errors, b"csi.stopped" in errors) == (0, True, True)
    assert not (tmp_path / "csi.sock").exists()


async def test_call_after_a_kill_finds_what_the_killed_process_has_begun(api: _Server, tmp_path: Path) -> None:
    endpoint = f"unix://{tmp_path}/csi.sock"
    api.cistern.held = {"volume.create"}
    async with running(api, endpoint) as (process, (_, controller, _)):
        call = asyncio.ensure_future(controller.CreateVolume(new_volume()))
        while not api.cistern.jobs:
            await asyncio.sleep(0.01)
        process.kill()
        assert await status(call) == "UNAVAILABLE"
    api.cistern.release()
    async with running(api, endpoint) as (_, (_, controller, _)):
        volume = (await controller.CreateVolume(new_volume())).volume

    assert [*api.cistern.volumes] == [volume.volume_id]
    assert len(api.cistern.jobs) == 1


async def test_call_takes_no_longer_than_a_few_seconds(api: _Server, tmp_path: Path) -> None:
    api.cistern.held = {"volume.create"}
    async with running(api, f"unix://{tmp_path}/csi.sock") as (_, (_, controller, _)):
        assert await status(controller.CreateVolume(new_volume(), timeout=8)) == "ABORTED"
