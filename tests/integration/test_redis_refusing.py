"""A Redis that answers but refuses writes: requests are accepted, it is said once, and afterwards all goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from arq.constants import in_progress_key_prefix

from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.jobs.transport.job_queue import QUEUE_NAME, QueueRefusesWrites
from domain.jobs.transport.messages import message_id
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended
from tests.unit.worker_fakes import until
from worker.consumer import ArqConsumer
from worker.main import arq_settings, open_worker
from worker.supervisor import Supervisor

Refusing = tuple[str, Callable[[redis.Redis], object], Callable[[redis.Redis], object]]


def cannot_save(client: Any) -> None:
    """Put a folder where the file has to go that Redis saves to."""
    (Path(client.config_get("dir")["dir"]) / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        pass


def can_save(client: Any) -> None:
    (Path(client.config_get("dir")["dir"]) / "dump.rdb").rmdir()
    client.config_set("save", "")


WAYS: list[Refusing] = [
    ("OOM", lambda client: client.config_set("maxmemory", 1), lambda client: client.config_set("maxmemory", 0)),
    ("READONLY", lambda client: client.replicaof("127.0.0.1", 1), lambda client: client.replicaof("NO", "ONE")),
    ("MISCONF", cannot_save, can_save),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])


@pytest.fixture(scope="module")
def own_redis() -> Iterator[str]:
    """The address of a Redis that no other test uses."""
    with temporary_data_dir() as folder, EmbeddedServers(folder, postgres=False, durable=False) as own:
        yield own.redis_url


@pytest.fixture
def client(own_redis: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_redis, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
async def services(settings: Settings, own_redis: str) -> AsyncIterator[Services]:
    async with open_services(settings.model_copy(update={"redis_url": own_redis})) as services:
        yield services


@asynccontextmanager
async def supervised(settings: Settings) -> AsyncIterator[None]:
    """Have a whole worker at work, which starts afresh what Redis has ended."""
    async with open_worker(settings) as runner:
        supervisor = Supervisor(runner, arq_settings(settings), drain=5)
        life = asyncio.create_task(supervisor.run())
        yield
        supervisor._on_signal()
        await life


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if event in record.getMessage()]


@every_way
async def test_requests_are_accepted_and_it_is_said_once(
    services: Services, client: redis.Redis, caplog: pytest.LogCaptureFixture, way: Refusing
) -> None:
    condition, refuse, relent = way
    refuse(client)
    try:
        jobs = [await services.volumes.request_create(NewVolume(f"unheard-{number}", MIB)) for number in range(5)]
        for _ in range(5):
            with pytest.raises(QueueRefusesWrites):
                await services.queue.ping()
    finally:
        relent(client)
    await services.queue.ping()
    await services.queue.ping()

    assert [job.status for job in jobs] == ["queued"] * 5
    (shout,) = said(caplog, "redis.refuses_writes")
    assert condition in shout
    assert "remedy" in shout
    assert len(said(caplog, "redis.writable_again")) == 1


@every_way
async def test_a_worker_says_it_instead_of_standing_idle_and_goes_on_by_itself(
    services: Services, client: redis.Redis, caplog: pytest.LogCaptureFixture, way: Refusing
) -> None:
    caplog.set_level(logging.DEBUG)
    condition, refuse, relent = way
    job = await services.volumes.request_create(NewVolume("heard-later", MIB))
    assert client.zcard(QUEUE_NAME) == 1
    refuse(client)
    async with supervised(services.settings):
        try:
            await until(lambda: bool(said(caplog, "redis.refuses_writes")))
            assert (await services.jobs.get(job.id)).status == "queued"
        finally:
            relent(client)
        done = await ended(services, job.id)

    assert (done.status, done.attempt) == ("succeeded", 1)
    (shout,) = said(caplog, "redis.refuses_writes")
    assert condition in shout


@every_way
async def test_a_claim_that_redis_refuses_is_not_taken_for_somebody_elses(
    services: Services, client: redis.Redis, way: Refusing
) -> None:
    _, refuse, relent = way
    job = await services.volumes.request_create(NewVolume("rung", MIB))
    async with open_worker(services.settings) as runner:
        delivery = ArqConsumer(runner, arq_settings(services.settings))
        delivery._pool = services.queue.redis
        refuse(client)
        try:
            with pytest.raises(redis.ResponseError):
                await delivery._fetch(1)
        finally:
            relent(client)
        ((taken, _),) = await delivery._fetch(1)

    assert taken.decode() == message_id(job.dispatch)


async def test_a_claim_of_somebody_else_is_no_reason_to_worry(services: Services, client: redis.Redis) -> None:
    job = await services.volumes.request_create(NewVolume("rung", MIB))
    client.set(in_progress_key_prefix + message_id(job.dispatch), 1)
    async with open_worker(services.settings) as runner:
        delivery = ArqConsumer(runner, arq_settings(services.settings))
        delivery._pool = services.queue.redis
        taken = await delivery._fetch(10)

    assert taken == []
