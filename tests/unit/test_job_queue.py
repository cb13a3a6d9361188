"""The message queue: sending a message twice stores it once, and failures of Redis are tolerated."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID, uuid4

import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.utils import timestamp_ms
from fakeredis import FakeServer
from redis.exceptions import ResponseError
from uuid_utils.compat import uuid7

from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue, QueueKeys, QueueRefusesWrites, QueueUnavailable, message_id
from tests.unit.worker_fakes import fake_redis, until


def a_queue(server: FakeServer | None = None) -> JobQueue:
    return JobQueue(fake_redis(server))


def new_messages(count: int) -> list[JobMessage]:
    return [JobMessage(uuid4(), number) for number in range(count)]


def unreachable() -> FakeServer:
    server = FakeServer()
    server.connected = False
    return server


async def message_ids(queue: JobQueue) -> set[str]:
    return {message.decode() for message in await queue.redis.zrange(queue.keys.queue(None), 0, -1)}


async def test_message_is_json_with_only_the_job_id_and_the_epoch() -> None:
    queue, message = a_queue(), JobMessage(UUID(int=7), 3)
    await queue.dispatch([message])
    raw = await queue.redis.get(job_key_prefix + message_id(message))

    assert raw is not None
    message = json.loads(raw)
    assert isinstance(message.pop("et"), int)
    assert message == {"t": None, "f": "run_job", "a": [str(UUID(int=7)), 3], "k": {}}


async def test_sending_the_same_message_twice_stores_it_once() -> None:
    queue, message = a_queue(), JobMessage(uuid4(), 1)
    await queue.dispatch([message])
    await queue.dispatch([message])

    assert await message_ids(queue) == {message_id(message)}


async def test_each_epoch_of_a_job_is_a_separate_message() -> None:
    queue, job_id = a_queue(), uuid4()
    await queue.dispatch([JobMessage(job_id, 1), JobMessage(job_id, 2)])

    assert await message_ids(queue) == {f"{job_id}:1", f"{job_id}:2"}


async def test_dispatches_without_a_message_are_missing() -> None:
    queue, many = a_queue(), new_messages(5)
    await queue.dispatch(many[:2])

    assert await queue.missing(many) == many[2:]


async def test_reserved_message_is_not_missing_and_not_sent_again() -> None:
    queue, (message,) = a_queue(), new_messages(1)
    await queue.dispatch([message])
    await queue.redis.zrem(queue.keys.queue(None), message_id(message))
    await queue.redis.zadd(queue.keys.reserved(None), {message_id(message): 1})

    assert await queue.missing([message]) == []
    await queue.dispatch([message])
    assert await message_ids(queue) == set()
    await queue.acknowledge(message)
    assert await queue.missing([message]) == [message]


async def test_all_messages_are_missing_after_flushall() -> None:
    queue, many = a_queue(), new_messages(5)
    await queue.dispatch(many)
    await queue.redis.flushall()

    assert await queue.missing(many) == many


async def test_acknowledging_deletes_every_key_of_the_message() -> None:
    queue, (mine, other) = a_queue(), new_messages(2)
    await queue.dispatch([mine, other])
    for prefix in (retry_key_prefix, in_progress_key_prefix):
        await queue.redis.set(prefix + message_id(mine), 1)
    await queue.acknowledge(mine)

    assert await message_ids(queue) == {message_id(other)}
    assert not await queue.redis.keys(f"*{mine.job_id}*")


async def test_acknowledged_message_can_be_sent_again() -> None:
    queue, (message,) = a_queue(), new_messages(1)
    await queue.dispatch([message])
    await queue.acknowledge(message)
    await queue.dispatch([message])

    assert await message_ids(queue) == {message_id(message)}


async def test_announcement_reaches_a_subscriber() -> None:
    server, job_id = FakeServer(), uuid4()
    announcements = a_queue(server).announcements()
    received = asyncio.ensure_future(anext(announcements))
    await until(lambda: any(server.subscribers.values()))
    await a_queue(server).announce(job_id)

    assert await received == job_id
    await announcements.aclose()  # type: ignore[attr-defined]


class TestWithoutRedis:
    async def test_dispatch_announce_and_acknowledge_do_not_raise(self) -> None:
        queue = a_queue(unreachable())
        await queue.dispatch(new_messages(3))
        await queue.announce(uuid4())
        await queue.acknowledge(*new_messages(1))

    async def test_missing_raises(self) -> None:
        with pytest.raises(QueueUnavailable):
            await a_queue(unreachable()).missing(new_messages(1))

    async def test_ping_raises(self) -> None:
        with pytest.raises(QueueUnavailable):
            await a_queue(unreachable()).ping()

    async def test_announcements_raise(self) -> None:
        with pytest.raises(QueueUnavailable):
            await anext(a_queue(unreachable()).announcements())

    async def test_unused_port_behaves_like_an_unreachable_server(self) -> None:
        queue = JobQueue.open("redis://127.0.0.1:1")
        async with asyncio.timeout(2):
            await queue.dispatch(new_messages(500))
            with pytest.raises(QueueUnavailable):
                await queue.missing(new_messages(1))
        await queue.close()


REPLICA = "Error running script: @user_script: 3: -READONLY You can't write against a read only replica."


async def test_replica_is_logged_once_if_an_older_command_is_refused_after_a_newer_one_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = a_queue()

    async def send(meanwhile: Callable[[], Awaitable[None]]) -> None:
        async with queue._calling():
            await meanwhile()
            raise ResponseError(REPLICA)

    async def newer() -> None:
        with pytest.raises(QueueRefusesWrites):
            await send(partial(asyncio.sleep, 0))
        await queue.ping()

    with pytest.raises(QueueRefusesWrites):
        await send(newer)

    assert caplog.text.count("redis.refuses_writes") == caplog.text.count("redis.writable_again") == 1


async def test_connection_in_use_when_a_replica_refuses_is_closed_after_use(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, closed = a_queue(), list[bool]()

    async def disconnect(inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 (redis-py's signature)
        closed.append(inuse_connections)

    monkeypatch.setattr(queue.redis.connection_pool, "disconnect", disconnect)
    async with queue._calling():
        with pytest.raises(QueueRefusesWrites):
            async with queue._calling():
                raise ResponseError(REPLICA)
        assert closed == [False]
    assert closed == [False] * 2


async def test_ping_succeeds_if_redis_is_up() -> None:
    await a_queue().ping()


async def test_installations_and_backends_have_queues_of_their_own() -> None:
    server, (message,) = FakeServer(), new_messages(1)
    ours, theirs = (JobQueue(fake_redis(server), QueueKeys(f"cistern:{name}")) for name in ("ours", "theirs"))
    await ours.dispatch([message, message._replace(job_id=uuid4(), backend="fast")])

    assert await ours.redis.zcard(ours.keys.queue(None)) == await ours.redis.zcard(ours.keys.queue("fast")) == 1
    assert await theirs.missing([message]) == [message]
    await theirs.acknowledge(message)
    assert await ours.redis.zcard(ours.keys.queue(None)) == 1
    assert not await theirs.redis.keys("cistern:theirs:*")


async def turns(queue: JobQueue) -> list[str]:
    """Return the projects of the messages in the queue, by their first letters, in their order."""
    ids = await queue.redis.zrange(queue.keys.queue(None), 0, -1)
    return [LETTERS[UUID(message.decode()[:36])] for message in ids]


#: The project of each job, as a letter.
LETTERS: dict[UUID, str] = {}
PROJECTS = {"a": UUID(int=1), "b": UUID(int=2), "c": UUID(int=3)}


def messages_of(letters: str) -> list[JobMessage]:
    """Return a message for each letter, of the project with the letter."""
    sent = [JobMessage(uuid7(), 0, None, PROJECTS[letter]) for letter in letters]
    LETTERS.update({message.job_id: letter for message, letter in zip(sent, letters, strict=True)})
    return sent


async def test_projects_take_turns() -> None:
    queue = a_queue()
    await queue.dispatch(messages_of("aaaaa"))
    await queue.dispatch(messages_of("bb"))
    await queue.dispatch(messages_of("c"))

    assert "".join(await turns(queue)) == "abcabaaa"


async def test_project_that_was_idle_has_saved_no_turns() -> None:
    """Else it could keep others waiting for as long as it was idle."""
    queue, many = a_queue(), messages_of("aaaaaaaa")
    await queue.dispatch(many)
    await asyncio.gather(*map(queue.acknowledge, many[:5]))
    await queue.dispatch(messages_of("bbbb"))

    assert "".join(await turns(queue)) == "ababab" + "b"


async def test_turns_begin_again_when_the_queue_is_empty() -> None:
    queue, many = a_queue(), messages_of("aaaaaaaa")
    await queue.dispatch(many)
    await asyncio.gather(*map(queue.acknowledge, many))
    await queue.dispatch(messages_of("b"))
    await queue.dispatch(messages_of("a"))

    assert "".join(await turns(queue)) == "ba"
    assert await queue.redis.zcard(queue.keys.turns(None)) == 2


async def test_messages_of_others_keep_none_of_ours_from_being_due() -> None:
    """Others have scores from the clock, or of any size."""
    queue = a_queue()
    await queue.redis.zadd(queue.keys.queue(None), {"foreign": float("inf")})
    await queue.dispatch(messages_of("aab"))
    scores = dict(await queue.redis.zrange(queue.keys.queue(None), 0, -1, withscores=True))
    del scores[b"foreign"]

    assert sorted(scores.values()) == [1, 1, 2], "turns begin as if the queue were empty"
    assert max(scores.values()) <= timestamp_ms() - 3600 * 1000


async def sent_by_the_version_before(queue: JobQueue, letters: str) -> None:
    """Send messages whose scores are the time an hour ago."""
    score = timestamp_ms() - 3600 * 1000 - 1000
    sent = {message_id(message): score + number for number, message in enumerate(messages_of(letters))}
    await queue.redis.zadd(queue.keys.queue(None), sent)


async def test_messages_of_the_version_before_take_turns_beside_those_of_this_one() -> None:
    """During an upgrade both send, and the queue may never be empty."""
    queue = a_queue()
    await queue.dispatch(messages_of("aaaaa"))
    await sent_by_the_version_before(queue, "ccc")
    await queue.dispatch(messages_of("b"))
    await sent_by_the_version_before(queue, "c")
    await queue.dispatch(messages_of("b"))

    order = "".join(await turns(queue))
    assert [sorted(order[:3]), sorted(order[3:6]), order[6:]] == [["a", "b", "c"], ["a", "b", "c"], "acaca"]


async def test_queue_with_messages_of_the_version_before_alone_begins_turns_anew() -> None:
    queue = a_queue()
    await sent_by_the_version_before(queue, "c" * 250)
    await queue.dispatch(messages_of("ab"))
    scores = [score for _, score in await queue.redis.zrange(queue.keys.queue(None), 0, -1, withscores=True)]

    assert sorted((await turns(queue))[:3]) == ["a", "b", "c"]
    assert [score for score in scores if score < 1000] == [1, 1, *range(1, 101)]
    await queue.dispatch(messages_of("a"))
    await queue.dispatch(messages_of("a"))
    assert max(score for _, score in await queue.redis.zrange(queue.keys.queue(None), 0, -1, withscores=True)) == 250


async def test_message_of_a_stock_producer_keeps_its_score() -> None:
    queue, score = a_queue(), timestamp_ms() - 2 * 3600 * 1000
    await queue.redis.zadd(queue.keys.queue(None), {uuid4().hex: score})
    await queue.dispatch(messages_of("a"))

    scores = [score for _, score in await queue.redis.zrange(queue.keys.queue(None), 0, -1, withscores=True)]
    assert scores == [1, score]


async def test_message_sent_again_keeps_its_turn() -> None:
    queue, many = a_queue(), messages_of("aab")
    await queue.dispatch(many)
    await queue.dispatch(many[:1])

    assert "".join(await turns(queue)) == "aba"
