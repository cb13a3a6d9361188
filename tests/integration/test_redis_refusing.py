"""A Redis that answers but refuses writes: requests are accepted, it is logged once, and work continues afterwards."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arq.constants import in_progress_key_prefix

from api.cli.stack import free_port
from domain.db.base import DEFAULT_PROJECT
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.jobs.transport.job_queue import QueueRefusesWrites, message_id
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended, writable_within
from tests.integration.test_redis_failover import redis_server
from tests.support.worker import supervised
from tests.unit.worker_fakes import until
from worker.consumer import ArqConsumer
from worker.main import arq_settings, open_worker

#: The condition in Redis' error message, and how to cause and clear it.
Refusal = tuple[str, Callable[[redis.Redis], object], Callable[[redis.Redis], object]]


def break_saving(client: Any) -> None:
    """Create a folder with the name of the file that Redis saves to."""
    (Path(client.config_get("dir")["dir"]) / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        pass


def repair_saving(client: Any) -> None:
    (Path(client.config_get("dir")["dir"]) / "dump.rdb").rmdir()
    client.config_set("save", "")


def forbid_scripts(client: Any) -> None:
    client.execute_command("ACL SETUSER", "default", "-@scripting")


def allow_scripts(client: Any) -> None:
    client.execute_command("ACL SETUSER", "default", "+@scripting")


REFUSALS: list[Refusal] = [
    ("OOM", lambda client: client.config_set("maxmemory", 1), lambda client: client.config_set("maxmemory", 0)),
    ("READONLY", lambda client: client.replicaof("127.0.0.1", 1), lambda client: client.replicaof("NO", "ONE")),
    ("MISCONF", break_saving, repair_saving),
    ("NOPERM", forbid_scripts, allow_scripts),
]
every_refusal = pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal[0])


@pytest.fixture(scope="module")
def own_redis() -> Iterator[str]:
    """The URL of a Redis that no other test uses."""
    with temporary_data_dir() as folder, EmbeddedServers(folder, postgres=False, durable=False) as own:
        yield own.redis_url


@pytest.fixture
def client(own_redis: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_redis, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
async def services(settings: Settings, own_redis: str) -> AsyncIterator[Services]:
    async with open_services(settings.model_copy(update={"redis_url": own_redis}), adopt=True) as services:
        yield services


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if event in record.getMessage()]


@every_refusal
async def test_requests_are_accepted_and_the_refusal_is_logged_once(
    services: Services, client: redis.Redis, caplog: pytest.LogCaptureFixture, refusal: Refusal
) -> None:
    condition, refuse, allow = refusal
    refuse(client)
    try:
        jobs = [
            await services.volumes.request_create(NewVolume(f"not-dispatched-{number}", MIB)) for number in range(5)
        ]
        for _ in range(5):
            with pytest.raises(QueueRefusesWrites):
                await services.queue.ping()
    finally:
        allow(client)
    await services.queue.ping()
    await services.queue.ping()

    assert [job.status for job in jobs] == ["queued"] * 5
    (line,) = logged(caplog, "redis.refuses_writes")
    assert condition in line
    assert "remedy" in line
    assert len(logged(caplog, "redis.writable_again")) == 1


@every_refusal
async def test_worker_logs_the_refusal_and_continues_by_itself(
    services: Services, client: redis.Redis, caplog: pytest.LogCaptureFixture, refusal: Refusal
) -> None:
    caplog.set_level(logging.DEBUG)
    condition, refuse, allow = refusal
    job = await services.volumes.request_create(NewVolume("dispatched-later", MIB))
    assert client.zcard(services.queue.keys.queue("memory")) == 1
    refuse(client)
    async with supervised(services.settings):
        try:
            await until(lambda: bool(logged(caplog, "redis.refuses_writes")))
            assert (await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).status == "queued"
        finally:
            allow(client)
        ended_job = await ended(services, job.id)

    assert (ended_job.status, ended_job.attempt) == ("succeeded", 1)
    (line,) = logged(caplog, "redis.refuses_writes")
    assert condition in line


@every_refusal
async def test_refused_fetch_is_not_mistaken_for_another_workers_claim(
    services: Services, client: redis.Redis, refusal: Refusal
) -> None:
    _, refuse, allow = refusal
    job = await services.volumes.request_create(NewVolume("dispatched", MIB))
    async with open_worker(services.settings) as runner:
        consumer = ArqConsumer(runner, arq_settings(services.settings, services.queue.keys))
        consumer._pool = services.queue.redis
        refuse(client)
        try:
            with pytest.raises(redis.ResponseError):
                await consumer._fetch(1)
        finally:
            allow(client)
        (fetched,) = await consumer._fetch(1)

    assert fetched.id.decode() == message_id(job.message)


def documented_rules() -> list[str]:
    """The rules of ACL SETUSER that docs/operations.md gives for a user of Redis."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (rules,) = re.findall(r"`ACL SETUSER (.+?)`", " ".join(text.split()))
    return str(rules).split()


@pytest.mark.parametrize("rules", [["app", "on", ">pw", "~*", "&*", "+@all", "-@dangerous"], documented_rules()])
async def test_restricted_user_is_enough(
    settings: Settings, own_redis: str, client: Any, caplog: pytest.LogCaptureFixture, rules: list[str]
) -> None:
    client.acl_deluser("app")
    client.execute_command("ACL SETUSER", *rules)
    url = own_redis.replace("unix://", "unix://app:pw@")
    async with (
        open_services(settings.model_copy(update={"redis_url": url}), adopt=True) as services,
        supervised(services.settings),
    ):
        await writable_within(services.queue, 20)
        for number in range(20):
            job = await services.volumes.request_create(NewVolume(f"by-a-restricted-user-{number}", MIB))
            await services.queue.missing([job.message])
            assert (await ended(services, job.id)).status == "succeeded"

    assert not logged(caplog, "redis.")


async def test_renamed_info_is_not_needed(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with redis_server(tmp_path, port, "--rename-command", "INFO", ""):
        url = f"redis://127.0.0.1:{port}"
        async with (
            open_services(settings.model_copy(update={"redis_url": url}), adopt=True) as services,
            supervised(services.settings),
        ):
            await services.queue.ping()
            job = await services.volumes.request_create(NewVolume("without-info", MIB))
            assert (await ended(services, job.id)).status == "succeeded"

    assert not logged(caplog, "redis.")


COMMANDS = ["get", "set", "del", "zadd", "zrangebyscore", "zrem", "zscore", "lpush", "ltrim", "evalsha"]


@pytest.mark.parametrize("command", COMMANDS)
async def test_forbidden_command_is_named_once_and_seen_by_probes(
    settings: Settings, own_redis: str, client: Any, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    client.acl_deluser("app")
    client.execute_command("ACL SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", f"-{command}")
    url = own_redis.replace("unix://", "unix://app:pw@")
    async with (
        open_services(settings.model_copy(update={"redis_url": url}), adopt=True) as services,
        supervised(services.settings),
    ):
        job = await services.volumes.request_create(NewVolume(command, MIB))
        for _ in range(3):
            with pytest.raises(QueueRefusesWrites):
                await services.queue.ping()
        await services.volumes.request_create(NewVolume(f"{command}-2", MIB))
        client.execute_command("ACL SETUSER", "app", f"+{command}")
        assert (await ended(services, job.id)).attempt == 1
        await services.queue.ping()
        lines = named(caplog, command)
        # There are more if a script was refused, too, whose error does not name the command.
        await until(lambda: len(logged(caplog, "redis.writable_again")) >= len(lines))

    assert lines
    assert len(lines) <= 2, "one line of ours, and one of the worker if it meets the command"


def named(caplog: pytest.LogCaptureFixture, command: str) -> list[str]:
    return [line for line in logged(caplog, "redis.refuses_writes") if f"'{command}" in line]


async def test_message_claimed_by_another_worker_is_skipped(services: Services, client: redis.Redis) -> None:
    job = await services.volumes.request_create(NewVolume("dispatched", MIB))
    client.set(in_progress_key_prefix + message_id(job.message), 1)
    async with open_worker(services.settings) as runner:
        consumer = ArqConsumer(runner, arq_settings(services.settings, services.queue.keys))
        consumer._pool = services.queue.redis
        fetched = await consumer._fetch(10)

    assert fetched == []
