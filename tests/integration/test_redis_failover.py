"""Redis fails over: behind Sentinels, and behind one address that leads to another server from then on."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis
from uuid_utils.compat import uuid7

from api.cli.stack import free_port
from domain.embedded.servers import find_redis_server
from domain.errors import ConfigurationError
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue, QueueKeys, QueueRefusesWrites, QueueUnavailable
from domain.jobs.transport.redis_client import open_redis
from domain.services import Services, open_services
from domain.settings import Settings
from domain.tasks import in_background
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended, writable_within
from tests.support.forwarding import Forwarder, forwarder
from tests.support.worker import supervised
from tests.unit.worker_fakes import until


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


def has_message(client: redis.Redis) -> bool:
    try:
        return bool(client.zcard(QueueKeys().queue(None)))
    except redis.ConnectionError:  # a promotion ends all connections
        return False


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
                    while not has_message(promoted):
                        await queue.dispatch([message])
                        await asyncio.sleep(0.05)
            await writable_within(queue, 15)


def at(address: Forwarder) -> str:
    return f"redis://127.0.0.1:{address.port}/0"


def promote(new: int, old: int, *, leader_of_old: int | None = None) -> None:
    """Make a replica the primary; the old one refuses writes from now on, and keeps its connections."""
    with redis.Redis(port=new) as promoted, redis.Redis(port=old) as demoted:
        promoted.replicaof("NO", "ONE")
        demoted.replicaof("127.0.0.1", leader_of_old or new)


async def test_address_that_leads_to_another_server_is_followed(tmp_path: Path) -> None:
    with pair(tmp_path) as ((first, _), (second, _)):
        async with forwarder(first) as address, opened(at(address)) as queue:
            await queue.ping()
            promote(second, first)
            address.leads_to = second
            await writable_within(queue, 15)


async def test_subscription_follows_the_address(tmp_path: Path) -> None:
    """The old primary repeats nothing that is published on the new one: it cannot reach it."""
    job_id, received = uuid7(), asyncio.Event()

    async def listen(queue: JobQueue) -> None:
        while True:
            async for announced in queue.announcements():
                if announced == job_id:
                    received.set()

    async def announced_within(seconds: float) -> None:
        received.clear()
        async with asyncio.timeout(seconds):
            while not received.is_set():
                await queue.announce(job_id)
                await asyncio.sleep(0.05)

    with pair(tmp_path) as ((first, _), (second, _)):
        async with forwarder(first) as address, opened(at(address)) as queue, in_background(listen(queue)):
            await announced_within(15)
            promote(second, first, leader_of_old=1)
            address.leads_to = second
            await writable_within(queue, 15)
            await announced_within(15)


async def job_succeeds(services: Services, name: str) -> None:
    """Request a volume; its job succeeds within 15 s, in its first attempt."""
    job = await services.volumes.request_create(NewVolume(name, MIB))
    async with asyncio.timeout(15):
        job = await ended(services, job.id)
    assert (job.status, job.attempt) == ("succeeded", 1)


@pytest.mark.parametrize("load", ["idle", "busy"])
async def test_worker_and_api_follow_an_address(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture, load: str
) -> None:
    """A busy worker does not wait for messages; its connection to the old primary stays open then."""
    gate = tmp_path / "gate"
    with pair(tmp_path) as ((first, _), (second, _)):
        async with forwarder(first) as address:
            changes = {"redis_url": at(address), "max_jobs": 1, "backends": {"local": f"faulty+memory:?gate={gate}"}}
            settings = settings.model_copy(update=changes)
            async with (
                open_services(settings, adopt=True) as services,
                services.watcher.watching(),
                supervised(settings),
            ):
                await job_succeeds(services, "before")
                if load == "busy":
                    gate.touch()
                    blocked = await services.volumes.request_create(NewVolume("blocked", MIB))
                    await until(lambda: was_logged(caplog, "job.started", times=2))
                promote(second, first)
                address.leads_to = second
                if load == "busy":
                    await asyncio.sleep(1)  # the worker's poll finds no free slot
                    gate.unlink()
                    assert (await ended(services, blocked.id)).attempt == 1
                for number in range(5):
                    await job_succeeds(services, f"after-{number}")
                await services.queue.ping()
    assert was_logged(caplog, "redis.refuses_writes", times=1)
    assert not was_logged(caplog, "redis.refuses_writes", times=3), "once in the worker, once in the API"


def was_logged(caplog: pytest.LogCaptureFixture, event: str, *, times: int) -> bool:
    return sum(f"'event': '{event}'" in record.getMessage() for record in caplog.records) >= times


@pytest.mark.parametrize("cause", ["killed", "by hand"])
async def test_worker_and_api_follow_a_sentinel(tmp_path: Path, settings: Settings, cause: str) -> None:
    with pair(tmp_path) as ((first, primary), _), sentinel(tmp_path, first) as port:
        settings = settings.model_copy(update={"redis_url": f"redis+sentinel://127.0.0.1:{port}/main/0"})
        async with open_services(settings, adopt=True) as services, services.watcher.watching(), supervised(settings):
            await job_succeeds(services, "before")
            if cause == "killed":
                primary.kill()
            else:
                with redis.Redis(port=port) as client:
                    client.sentinel_failover("main")
            for number in range(10):
                await job_succeeds(services, f"after-{number}")
            await writable_within(services.queue, 15)


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


async def test_cluster_is_refused_with_what_to_use_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # The nodes of a cluster talk to each other at a port that is 10,000 higher.
    port = next(port for port in iter(free_port, None) if port + 10_000 < 2**16)
    messages = [JobMessage(uuid7(), 0, backend) for backend in ("local", "fast")]
    with redis_server(tmp_path, port, "--cluster-enabled", "yes"), redis.Redis(port=port) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            await asyncio.sleep(0.05)
        async with opened(f"redis://127.0.0.1:{port}") as queue:
            for _ in range(3):
                await queue.dispatch(messages)
                with pytest.raises(QueueRefusesWrites):
                    await queue.ping()

    (line,) = [line for line in caplog.messages if "redis." in line]
    assert "set CISTERN_REDIS_URL to a server without cluster mode" in line


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://h:1", "the path must be the name of the primary"),
        ("redis+sentinel://:1/main", "a Sentinel has no host"),
        ("redis+sentinel://h/main?foo=1", "there is no option foo"),
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
