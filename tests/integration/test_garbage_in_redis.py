"""Whatever another program has written to Redis, jobs start soon, and the log stays short."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from arq.constants import job_key_prefix, retry_key_prefix

from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import FUNCTION_NAME, QueueRefusesWrites, message_id
from domain.services import Services
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended, until
from tests.support.worker import supervised

ID = "11111111-1111-1111-1111-111111111111"
STOCK: dict[str, object] = {"t": None, "f": FUNCTION_NAME, "a": [ID, 1], "k": {}, "et": 1}

#: Garbage: the id of a message, and what is stored for it; None: nothing is.
GARBAGE = [
    (b"\xff\xfe", None),
    (b"line\n2026 [info     ] job.forged", None),
    (b"expired", None),
    (b"pickle", b"\x80\x04\x95cposix\nsystem\n"),
    (b"large", json.dumps(STOCK | {"k": "x" * 100_000}).encode()),
    (b"deep", f'"{FUNCTION_NAME}"'.encode() + b"[" * 50_000),
    (b"deeper", b'{"f": "run_job", "a": ' + b"[" * 50_000),
    (b"no function", json.dumps(STOCK | {"f": "os.system"}).encode()),
    (b"list for a function", json.dumps(STOCK | {"f": [FUNCTION_NAME]}).encode()),
    (b"no dict", json.dumps([FUNCTION_NAME]).encode()),
    (b"no members", json.dumps({"f": FUNCTION_NAME}).encode()),
    (b"arguments", json.dumps(STOCK | {"a": [1, 2, 3]}).encode()),
    (b"no arguments", json.dumps(STOCK | {"a": None}).encode()),
    (b"keywords", json.dumps(STOCK | {"k": {"x": 1}}).encode()),
    (b"time", json.dumps(STOCK | {"et": 10**30}).encode()),
    (b"tries", json.dumps(STOCK | {"t": "many"}).encode()),
    (b"id", json.dumps(STOCK | {"a": ["x", 1]}).encode()),
]


async def add_garbage(services: Services, count: int) -> None:
    """Put ids without messages before all others in each queue."""
    for backend in (None, "memory"):
        garbage = {f"garbage-{number}": 0 for number in range(count)}
        await services.queue.redis.zadd(services.queue.keys.queue(backend), garbage)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if event in record.getMessage()]


@pytest.fixture
async def clean(services: Services) -> AsyncIterator[Services]:
    """Services whose queues are removed at the end, since other tests use the same Redis."""
    yield services
    for backend in (None, "memory"):
        await services.queue.redis.delete(services.queue.keys.queue(backend), services.queue.keys.wakeups(backend))


async def test_job_starts_soon_beside_twenty_thousand_ids_without_messages(
    clean: Services, caplog: pytest.LogCaptureFixture
) -> None:
    await add_garbage(clean, 20_000)
    async with supervised(clean.settings):
        async with asyncio.timeout(3):  # 23 s when each was handled by arq
            job = await ended(clean, (await clean.volumes.request_create(NewVolume("beside-garbage", MIB))).id)
        keys = [clean.queue.keys.queue(backend) for backend in (None, "memory")]

        async def are_empty() -> bool:
            return not any([await clean.queue.redis.zcard(key) for key in keys])

        await until(are_empty)

    assert job.status == "succeeded"
    assert len(caplog.records) < 50
    (line, *_) = lines(caplog, "messages.discarded")
    assert "garbage-" in line


@pytest.mark.parametrize(("identity", "data"), GARBAGE, ids=lambda value: ascii(value)[:20])
async def test_garbage_is_removed_without_a_traceback(
    clean: Services, caplog: pytest.LogCaptureFixture, identity: bytes, data: bytes | None
) -> None:
    caplog.set_level(logging.INFO)
    for backend in (None, "memory"):
        await clean.queue.redis.zadd(clean.queue.keys.queue(backend), {identity: 0})
    if data is not None:
        await clean.queue.redis.set(job_key_prefix.encode() + identity, data)

    async def is_gone() -> bool:
        keys = [clean.queue.keys.queue(backend) for backend in (None, "memory")]
        return not any([await clean.queue.redis.zcard(key) for key in keys])

    async with supervised(clean.settings):
        await until(is_gone)
        await until(lambda: asyncio.sleep(0, bool(lines(caplog, "messages.discarded"))))

    assert len(lines(caplog, "messages.discarded")) == 1
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.WARNING]
    assert not await clean.queue.redis.exists(job_key_prefix.encode() + identity)


@pytest.mark.parametrize("prefix", [job_key_prefix, retry_key_prefix])
async def test_job_starts_although_a_key_of_its_message_has_another_type(clean: Services, prefix: str) -> None:
    job = await clean.volumes.request_create(NewVolume("wrong-key", MIB))
    key = prefix + message_id(JobMessage(job.id, job.epoch, job.backend))
    await clean.queue.redis.delete(key)
    await clean.queue.redis.lpush(key, b"x")  # type: ignore[misc]
    async with supervised(clean.settings):
        assert (await ended(clean, job.id)).status == "succeeded"


async def test_stock_message_with_a_retry_counter_of_another_type_is_removed(
    clean: Services, caplog: pytest.LogCaptureFixture
) -> None:
    queue = clean.queue.keys.queue(None)
    await clean.queue.redis.lpush(f"{retry_key_prefix}mine", b"x")  # type: ignore[misc]
    await clean.queue.redis.enqueue_job(FUNCTION_NAME, ID, 1, _job_id="mine", _queue_name=queue)

    async def is_gone() -> bool:
        return int(await clean.queue.redis.zcard(queue)) == 0

    async with supervised(clean.settings):
        await until(is_gone)

    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.WARNING]


@pytest.mark.parametrize("backend", [None, "memory"])
async def test_list_of_wakeups_of_another_type_is_reported_and_keeps_no_job_from_starting(
    clean: Services, backend: str | None
) -> None:
    await clean.queue.redis.set(clean.queue.keys.wakeups(backend), "not ours")
    with pytest.raises(QueueRefusesWrites, match="WRONGTYPE"):
        await clean.queue.ping([None, "memory"])
    job = await clean.volumes.request_create(NewVolume("no-wakeups", MIB))
    async with supervised(clean.settings):
        assert (await ended(clean, job.id)).status == "succeeded"


@pytest.mark.parametrize("backend", [None, "memory"])
async def test_queue_of_another_type_is_reported_and_jobs_start_when_it_is_deleted(
    clean: Services, caplog: pytest.LogCaptureFixture, backend: str | None
) -> None:
    key = clean.queue.keys.queue(backend)
    await clean.queue.redis.set(key, "not ours")
    job = await clean.volumes.request_create(NewVolume("no-queue", MIB))

    with pytest.raises(QueueRefusesWrites, match="WRONGTYPE"):
        await clean.queue.ping([None, "memory"])
    caplog.clear()
    async with supervised(clean.settings):
        await until(lambda: asyncio.sleep(0, bool(lines(caplog, "redis.refuses_writes"))))
        await clean.queue.redis.delete(key)
        assert (await ended(clean, job.id)).status == "succeeded"
    (line, *_) = lines(caplog, "redis.refuses_writes")
    assert "WRONGTYPE" in line
    assert "delete it" in line
    assert key in line
