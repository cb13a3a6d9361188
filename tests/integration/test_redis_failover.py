"""Redis fails over: behind Sentinels, and behind one address that leads to another server from then on."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis
from uuid_utils.compat import uuid7

from domain.embedded.servers import find_redis_server
from domain.errors import ConfigurationError
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue, QueueUnavailable
from domain.jobs.transport.redis_client import open_redis
from tests.integration.job_builders import writable_within


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def redis_server(folder: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command: list[str] = [
        str(find_redis_server()),
        *arguments,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, redis.Redis(port=port) as client:
        try:
            wait_until_it_answers(client)
            yield process
        finally:
            process.kill()


def wait_until_it_answers(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the server does not answer")


@contextmanager
def pair(folder: Path) -> Iterator[tuple[tuple[int, subprocess.Popen[bytes]], tuple[int, subprocess.Popen[bytes]]]]:
    """A primary and its replica: the port and process of each."""
    first, second = free_port(), free_port()
    replica_of = ("--replicaof", "127.0.0.1", str(first), "--repl-diskless-sync-delay", "0")
    with redis_server(folder, first, "--save", "") as primary, redis_server(folder, second, *replica_of) as replica:
        with redis.Redis(port=second) as client:
            while client.info("replication")["master_link_status"] != "up":
                time.sleep(0.02)
        yield (first, primary), (second, replica)


@contextmanager
def sentinel(folder: Path, primary: int) -> Iterator[int]:
    port, config = free_port(), folder / "sentinel.conf"
    lines = [f"sentinel monitor main 127.0.0.1 {primary} 1", "sentinel down-after-milliseconds main 500"]
    config.write_text("\n".join([*lines, "sentinel failover-timeout main 3000", ""]))
    with redis_server(folder, port, str(config), "--sentinel"), redis.Redis(port=port) as client:
        while [replica["master-link-status"] for replica in client.sentinel_slaves("main")] != ["ok"]:
            time.sleep(0.05)
        yield port


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[JobQueue]:
    queue = JobQueue.open(url)
    try:
        yield queue
    finally:
        await queue.close()


@pytest.mark.parametrize("cause", ["killed", "by hand"])
async def test_sentinel_names_the_new_primary_within_15_seconds(tmp_path: Path, cause: str) -> None:
    with pair(tmp_path) as ((first, primary), (second, _)), sentinel(tmp_path, first) as port:
        async with opened(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/main/0") as queue:
            await queue.ping()
            if cause == "killed":
                primary.kill()
            else:
                with redis.Redis(port=port) as client:
                    client.sentinel_failover("main")
            # The old primary takes writes for a moment yet, and they are lost: a maintenance task sends them again.
            message = JobMessage(uuid7(), 0)
            with redis.Redis(port=second) as promoted:
                async with asyncio.timeout(15):
                    while not promoted.zcard("cistern:queue"):
                        await queue.dispatch([message])
                        await asyncio.sleep(0.05)
            await writable_within(queue, 15)


async def test_address_that_leads_to_another_server_is_followed(tmp_path: Path) -> None:
    """The connections to the old primary stay open, and it refuses writes now."""
    leads_to: list[int] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        other, to_other = await asyncio.open_connection("127.0.0.1", leads_to[-1])
        await asyncio.gather(copy(reader, to_other), copy(other, writer), return_exceptions=True)

    with pair(tmp_path) as ((first, _), (second, _)):
        leads_to.append(first)
        async with (
            await asyncio.start_server(forward, "127.0.0.1", 0) as forwarder,
            opened(f"redis://127.0.0.1:{forwarder.sockets[0].getsockname()[1]}/0") as queue,
        ):
            await queue.ping()
            with redis.Redis(port=second) as new, redis.Redis(port=first) as old:
                new.replicaof("NO", "ONE")
                old.replicaof("127.0.0.1", second)
            leads_to.append(second)
            await writable_within(queue, 15)


async def test_address_that_resets_every_connection_is_an_outage() -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with (
        await asyncio.start_server(reset, "127.0.0.1", 0) as server,
        opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0") as queue,
    ):
        for _ in range(50):
            with pytest.raises(QueueUnavailable):
                await queue.ping()
            await queue.dispatch([JobMessage(uuid7(), 0)])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://h:1", "the path must be the name of the primary"),
        ("redis+sentinel://:1/main", "is no host"),
        ("redis+sentinel://h/main?foo=1", "unexpected keyword argument 'foo'"),
    ],
)
def test_url_of_sentinels_that_cannot_be_used_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CISTERN_REDIS_URL: .*{reason}"):
        open_redis(url)


def test_options_and_account_of_the_url_reach_the_primary() -> None:
    url = "rediss+sentinel://u:p@h1,h2:7/main/3?sentinel_password=s&health_check_interval=5"
    pool = open_redis(url).connection_pool

    options = {"username": "u", "password": "p", "db": 3, "health_check_interval": 5}
    assert pool.connection_kwargs.items() >= options.items()
    assert pool.connection_class.__name__ == "SentinelManagedSSLConnection"
    (first, second) = pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
    assert first.connection_pool.connection_kwargs.items() >= {"host": "h1", "port": 26379, "password": "s"}.items()
    assert second.connection_pool.connection_kwargs["port"] == 7
