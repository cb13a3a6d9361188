"""Redis behind HAProxy, which sends each new connection to the server that says that it is the primary."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from api.cli.stack import free_port
from domain.services import open_services
from domain.settings import Settings
from tests.integration.job_builders import writable_within
from tests.integration.test_redis_failover import job_succeeds, pair, sentinel, wait_until_it_answers
from tests.support.worker import supervised

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
CONFIGURATION = """
defaults
    mode tcp
    timeout connect 1s
    timeout client 1h
    timeout server 1h
listen redis
    bind 127.0.0.1:{port}
    option tcp-check
    tcp-check send info\\ replication\\r\\n
    tcp-check expect string role:master
    default-server check inter 200ms fall 1 rise 1 {sessions}
    server first 127.0.0.1:{first}
    server second 127.0.0.1:{second}
"""

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy")


@contextmanager
def haproxy(folder: Path, first: int, second: int, sessions: str) -> Iterator[str]:
    """Run HAProxy in front of two servers, and yield the URL of its address."""
    port, file = free_port(), folder / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(port=port, first=first, second=second, sessions=sessions))
    with subprocess.Popen([str(HAPROXY), "-q", "-db", "-f", str(file)]) as process, redis.Redis(port=port) as client:
        try:
            wait_until_it_answers(client)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.parametrize("sessions", ["on-marked-down shutdown-sessions", ""], ids=["shut down", "left open"])
@pytest.mark.parametrize("cause", ["killed", "by hand"])
async def test_worker_and_api_follow_a_failover_behind_haproxy(
    tmp_path: Path, settings: Settings, cause: str, sessions: str
) -> None:
    with (
        pair(tmp_path) as ((first, primary), (second, _)),
        sentinel(tmp_path, first) as port,
        haproxy(tmp_path, first, second, sessions) as url,
    ):
        settings = settings.model_copy(update={"redis_url": url})
        async with open_services(settings, adopt=True) as services, services.watcher.watching(), supervised(settings):
            await job_succeeds(services, "before")
            if cause == "killed":
                primary.kill()
            else:
                with redis.Redis(port=port) as client:
                    client.sentinel_failover("main")
            for number in range(5):
                await job_succeeds(services, f"after-{number}")
            await writable_within(services.queue, 15)
