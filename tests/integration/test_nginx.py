"""A stream of events behind nginx, which buffers responses and drops silent ones."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import fastapi.routing
import httpx
import pytest

from api.main import create_app
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, set_job
from tests.support.keys import BEARER
from tests.support.servers import serving

#: nginx gives up a response that sends nothing for so long, 60 seconds by default. FastAPI sends a comment every 15
#: seconds to an idle stream; both are shorter here, in seconds.
READ_TIMEOUT, COMMENT_SECONDS = 2, 0.4
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering on; proxy_read_timeout {seconds}s;
        }}
    }}
}}
"""


class Proxy:
    """An nginx in front of an API."""

    def __init__(self, folder: Path, upstream: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        file = folder / "nginx.conf"
        file.write_text(CONFIGURATION.format(folder=folder, port=port, upstream=upstream, seconds=READ_TIMEOUT))
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([str(NGINX), "-c", str(file), "-p", str(folder)])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


@pytest.fixture
async def proxy(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Proxy]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", COMMENT_SECONDS)
    async with serving(create_app(lambda: nullcontext(services))) as server:
        proxy = Proxy(tmp_path, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        yield proxy
        await asyncio.to_thread(proxy.stop)


async def until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await http.get("/readyz")).status_code == 200
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


async def until_line(lines: AsyncIterator[str], beginning: str) -> None:
    """Read until a line begins like this; fail if the stream ends, or after five seconds."""
    async with asyncio.timeout(5):
        async for line in lines:
            if line.startswith(beginning):
                return
    raise AssertionError("the stream has ended")


async def test_idle_stream_stays_open_behind_nginx_and_an_event_arrives_at_once(
    proxy: Proxy, services: Services
) -> None:
    job = await a_queued_expand(services)
    async with httpx.AsyncClient(base_url=proxy.address, timeout=30, headers=BEARER) as http:
        await until_ready(http)
        async with http.stream("GET", f"/api/v1/jobs/{job.id}/events") as response:
            lines = response.aiter_lines()
            await until_line(lines, "id: 1")
            for _ in range(2 * round(READ_TIMEOUT / COMMENT_SECONDS)):
                await until_line(lines, ":")
            await set_job(services, job.id, "status = 'failed', finished_at = now(), version = version + 1")
            await until_line(lines, "event: ended")


def test_comments_come_more_often_than_proxies_give_up_by_default() -> None:
    assert vars(fastapi.routing)["_PING_INTERVAL"] <= 60 / 2
