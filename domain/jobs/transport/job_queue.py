"""The message queue: the only module of the domain that uses connections to Redis.

A message means only that a row may be ready to be claimed, so a client with write access to Redis can at most make a
worker query PostgreSQL. Losing every message loses no job. Its format is that of an arq job, in JSON, with the job id
and the epoch as its only arguments.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from arq.jobs import serialize_job
from arq.utils import timestamp_ms
from redis.exceptions import RedisError, ResponseError

from domain.batching import Batcher
from domain.errors import Unavailable
from domain.jobs.model import JobMessage
from domain.jobs.transport.redis_client import TIMEOUT_SECONDS, open_redis
from domain.jobs.transport.scripts import ACKNOWLEDGE, MAX_WAKEUPS, MISSING, SEND
from domain.jobs.transport.write_errors import WriteErrors, is_from_replica

#: Expiry of a message, as in arq. A job that still waits then gets a new message from maintenance.
_MESSAGE_LIFETIME_MS: Final = 24 * 3600 * 1000
#: arq compares the score of a message with the worker's clock. Scores are turns: small numbers, counted from when the
#: queue was empty. Those of the version before are times an hour ago, so that a worker whose clock is behind still
#: fetches its messages at once.
_MAX_CLOCK_SKEW_MS: Final = 3600 * 1000
#: Maximum number of messages per round trip.
_MAX_BATCH: Final = 500

#: The only function registered with arq. The name must never change: messages of other versions carry it.
FUNCTION_NAME: Final = "run_job"
#: The maximum of PostgreSQL's bigint; a message may contain any number.
_MAX_EPOCH: Final = 2**63 - 1

#: The exact bytes of a message of ours: parsing it as JSON takes ten times as long.
_MESSAGE: Final = re.compile(
    rb'\{"t": null, "f": "%b", "a": \["([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", (0|[1-9][0-9]{0,18})\], '
    rb'"k": \{\}, "et": [0-9]+\}' % FUNCTION_NAME.encode()
)

serialize: Callable[[dict[str, Any]], bytes] = lambda message: json.dumps(message).encode()  # noqa: E731
deserialize: Callable[[bytes], dict[str, Any]] = json.loads

#: How long a node that is away finds that it was woken.
_LOOK_LIFETIME_SECONDS: Final = 60

log = structlog.get_logger(__name__)


class QueueUnavailable(Unavailable):
    """Redis is not responding."""

    code = "queue-unavailable"


class QueueRefusesWrites(QueueUnavailable):
    """Redis refuses writes."""

    code = "queue-refuses-writes"


class QueueKeys(NamedTuple):
    """The names in Redis. Those of each installation have a prefix of their own, so that several may share a Redis.

    There is one queue for each backend, so that a message reaches only workers that can use it, and one for jobs that
    any worker can do (``backend`` None).
    """

    prefix: str = "cistern"

    @classmethod
    def of(cls, installation: UUID) -> Self:
        """Return the names of an installation."""
        return cls(f"cistern:{installation}")

    def queue(self, backend: str | None) -> str:
        """The sorted set of the messages for jobs on a backend."""
        return f"{self.prefix}:queue" if backend is None else f"{self.prefix}:queue:{backend}"

    def reserved(self, backend: str | None) -> str:
        """The sorted set of the messages that workers have fetched from the queue and not acknowledged yet."""
        return f"{self.prefix}:reserved" if backend is None else f"{self.prefix}:reserved:{backend}"

    def messages(self, backend: str | None) -> list[str]:
        """The two sorted sets of which one has a message that was sent: the queue and the reserved messages."""
        return [self.queue(backend), self.reserved(backend)]

    def wakeups(self, backend: str | None) -> str:
        """The list that idle workers block on.

        Each message sent adds an element, up to `MAX_WAKEUPS`. A worker that finds no more messages empties it.
        """
        return f"{self.prefix}:wakeups" if backend is None else f"{self.prefix}:wakeups:{backend}"

    def turns(self, backend: str | None) -> str:
        """The sorted set with the turn of the last message of each project, for a queue that is not empty."""
        return f"{self.prefix}:turns" if backend is None else f"{self.prefix}:turns:{backend}"

    def looks(self, backend: str) -> str:
        """The list on which a node waits for a reason to look at its volumes."""
        return f"{self.prefix}:looks:{backend}"

    @property
    def changes(self) -> str:
        """The channel on which changed jobs are announced."""
        return f"{self.prefix}:job-changed"

    @property
    def ping(self) -> str:
        """A key that is written only to test whether Redis accepts writes."""
        return f"{self.prefix}:written"


class JobQueue:
    """Redis: sorted sets of message ids, a key per message, lists that wake idle workers, and a pub/sub channel."""

    def __init__(self, redis: ArqRedis, keys: QueueKeys = QueueKeys()) -> None:  # noqa: B008 (immutable)
        redis.job_serializer = serialize
        redis.job_deserializer = deserialize
        redis.default_queue_name = keys.queue(None)
        self.redis = redis
        self.keys = keys
        self.write_errors = WriteErrors()
        #: Number of errors which showed that a connection leads to a replica.
        self._read_only_errors = 0
        self._send = redis.register_script(SEND)
        self._acknowledge = redis.register_script(ACKNOWLEDGE)
        self._missing = redis.register_script(MISSING)
        self._send_batcher = Batcher(self._send_batch, max_batch=_MAX_BATCH, drop_cancelled=True)
        self._acknowledge_batcher = Batcher(self._acknowledge_batch, max_batch=_MAX_BATCH)

    @classmethod
    def open(cls, url: str, keys: QueueKeys = QueueKeys()) -> Self:  # noqa: B008 (immutable)
        """Prepare connections to the Redis at ``url``, as `open_redis` does; the first is opened on first use."""
        return cls(open_redis(url), keys)

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[None]:
        """Convert the errors of a short exchange with Redis, and note whether it refuses writes.

        Raises:
            QueueRefusesWrites: Redis refuses a command.
            QueueUnavailable: it does not answer in time.
        """
        errors = self._read_only_errors
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                yield
            if errors != self._read_only_errors:  # this connection was in use when the others were closed
                await self.redis.connection_pool.disconnect(inuse_connections=False)
        except ResponseError as error:
            await self._note_refusal(error, is_new=errors == self._read_only_errors)
            raise QueueRefusesWrites(str(error)) from error
        # RuntimeError: what the event loop raises for a connection that was closed while it was being opened.
        except (RedisError, OSError, RuntimeError) as error:
            raise QueueUnavailable(str(error)) from error

    async def _note_refusal(self, error: ResponseError, *, is_new: bool) -> None:
        """Note that Redis refuses a command; if it is a replica, close the connections that lead there.

        ``is_new``: no replica has refused a command since this one was sent. Otherwise its error is noted already, and
        may come after the first success on a new connection: it does not mean that writes are refused again.
        """
        from_replica = is_from_replica(error)
        if is_new or not from_replica:
            self.write_errors.note(error)
        if from_replica:  # the same address may lead to the new primary by now
            self._read_only_errors += 1
            await self.redis.connection_pool.disconnect(inuse_connections=False)

    async def dispatch(self, messages: Iterable[JobMessage]) -> None:
        """Send messages. Idempotent; failures are only logged, as a maintenance task sends lost messages again."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):  # a message may have to wait for the batch before it
                await asyncio.gather(*map(self._send_batcher.submit, messages))
        except TimeoutError:
            log.warning("dispatch.failed", error="Redis did not respond in time")

    async def _send_batch(self, messages: Sequence[JobMessage]) -> Sequence[None]:
        """Write messages in the format of arq's `enqueue_job`, which needs three round trips per message."""
        now = timestamp_ms()
        try:
            async with self._calling():
                for backend, its_messages in _by_backend(messages).items():
                    keys = [*self.keys.messages(backend), self.keys.turns(backend), self.keys.wakeups(backend)]
                    args: list[Any] = [_MESSAGE_LIFETIME_MS, now - _MAX_CLOCK_SKEW_MS]
                    for message in its_messages:
                        args += (message_id(message), write_message(message, sent_ms=now), str(message.project_id))
                    await self._send(keys=keys, args=args)
            self.write_errors.note_message()
        except QueueRefusesWrites:
            pass  # logged once per outage
        except QueueUnavailable as error:
            log.warning("dispatch.failed", error=error.message)
        return [None] * len(messages)

    async def missing(self, messages: Sequence[JobMessage]) -> list[JobMessage]:
        """Return those whose message is neither in the queue nor reserved, and delete the remains of their messages.

        Raises:
            QueueUnavailable: Redis does not answer, or refuses writes.
        """
        missing: list[JobMessage] = []
        async with self._calling():
            for backend, its_messages in _by_backend(messages).items():
                ids = [*map(message_id, its_messages)]
                positions = await self._missing(keys=self.keys.messages(backend), args=ids)
                missing += [its_messages[position - 1] for position in positions]
        return missing

    def acknowledge(self, message: JobMessage) -> "asyncio.Future[None]":
        """Delete a message after its claim was tried, with or without success. Returns a future of Redis's reply.

        If the deletion fails, the message is delivered again. It then claims nothing, unless the job is still queued.
        """
        return self._acknowledge_batcher.submit(message)

    async def _acknowledge_batch(self, messages: Sequence[JobMessage]) -> Sequence[None]:
        try:
            async with self._calling():
                for backend, its_messages in _by_backend(messages).items():
                    ids = [*map(message_id, its_messages)]
                    await self._acknowledge(keys=self.keys.messages(backend), args=ids)
        except QueueRefusesWrites:
            pass
        except QueueUnavailable as error:
            log.warning("acknowledge.failed", error=error.message)
        return [None] * len(messages)

    async def announce(self, *job_ids: UUID) -> None:
        """Publish that jobs have changed. Best effort: watchers also poll."""
        try:
            async with self._calling():
                await self.redis.publish(self.keys.changes, " ".join(map(str, job_ids)))
        except QueueUnavailable as error:
            log.debug("announce.failed", error=error.message)

    async def wake(self, queue: str) -> None:
        """End the waiting in `woken` for this queue. Best effort: it also looks by itself."""
        try:
            async with self._calling(), self.redis.pipeline(transaction=True) as pipe:
                pipe.lpush(self.keys.looks(queue), b"")
                pipe.ltrim(self.keys.looks(queue), 0, 0)
                pipe.expire(self.keys.looks(queue), _LOOK_LIFETIME_SECONDS)
                await pipe.execute()
        except QueueUnavailable as error:
            log.debug("wake.failed", error=error.message)

    async def woken(self, queue: str, seconds: float) -> None:
        """Wait until `wake` is called for this queue, but no longer than that many seconds."""
        try:
            # redis-py annotates the result as that of its synchronous client too.
            await self.redis.blpop([self.keys.looks(queue)], timeout=seconds)  # type: ignore[misc, arg-type]
        except (RedisError, OSError, RuntimeError):
            await asyncio.sleep(seconds)

    async def announcements(self) -> AsyncIterator[UUID]:
        """Subscribe, and yield the id of each job that is announced as changed.

        Ends when Redis turns out to be a replica: the subscription is to be made again, where the address leads to now.

        Raises:
            QueueUnavailable: Redis does not answer, or the connection was lost.
        """
        try:
            async with self.redis.pubsub() as channel:
                await channel.subscribe(self.keys.changes)
                errors = self._read_only_errors
                while self._read_only_errors == errors:
                    message = await channel.get_message(ignore_subscribe_messages=True, timeout=1)
                    if message is not None:
                        for word in message["data"].split():
                            with suppress(ValueError):  # any client may publish anything on the channel
                                yield UUID(word.decode())
        except (RedisError, OSError, RuntimeError) as error:
            raise QueueUnavailable(str(error)) from error

    async def ping(self, backends: Iterable[str | None] = (None,)) -> None:
        """Try the commands that workers and the API need, without an effect, on the queues of these backends.

        Raises:
            QueueRefusesWrites: Redis refuses one: a replica, a full server, too few permissions, a key of another type.
            QueueUnavailable: it does not answer.
        """
        async with self._calling(), self.redis.pipeline(transaction=True) as pipe:
            queue, tried = self.keys.queue(None), f"{self.keys.ping}:list"
            pipe.set(self.keys.ping, b"", px=1000)
            pipe.get(self.keys.ping)
            pipe.zadd(queue, {b"": 0}, xx=True)  # only if it were there
            pipe.zrangebyscore(queue, 1, 0)
            pipe.zrem(queue, b"")
            pipe.lpush(tried, b"")
            pipe.delete(tried)
            for backend in backends:
                for messages in self.keys.messages(backend):
                    pipe.zscore(messages, "")
                pipe.zscore(self.keys.turns(backend), "")
                pipe.ltrim(self.keys.wakeups(backend), 0, MAX_WAKEUPS - 1)
            await pipe.execute()
            await self._acknowledge(keys=[], args=[])
        self.write_errors.clear()

    async def info(self) -> Mapping[str, Any]:
        """Return what Redis says of itself.

        Raises:
            QueueRefusesWrites: the user may not ask.
            QueueUnavailable: it does not answer.
        """
        async with self._calling():
            facts: Mapping[str, Any] = await self.redis.info()
            return facts

    async def close(self) -> None:
        """Close every connection."""
        await self.redis.aclose(close_connection_pool=True)


def _by_backend(messages: Iterable[JobMessage]) -> Mapping[str | None, Sequence[JobMessage]]:
    found: defaultdict[str | None, list[JobMessage]] = defaultdict(list)
    for message in messages:
        found[message.backend].append(message)
    return found


def message_id(message: JobMessage) -> str:
    """Return the arq job id of a message; unique per job and epoch, so that a message sent twice is stored once."""
    return f"{message.job_id}:{message.epoch}"


def write_message(message: JobMessage, *, sent_ms: int) -> bytes:
    """Serialize a message as arq's own producer does; ``sent_ms`` is the time in milliseconds."""
    return serialize_job(FUNCTION_NAME, (str(message.job_id), message.epoch), {}, None, sent_ms, serializer=serialize)


def read_message(identity: bytes, data: bytes | None, backend: str | None = None) -> JobMessage | None:
    """Parse a message written by `write_message` under its own id; return None for any other, or for no message.

    ``backend`` is that of the queue in which it was.
    """
    match = _MESSAGE.fullmatch(data or b"")
    if match is None or b"%b:%b" % match.groups() != identity:
        return None
    epoch = int(match[2])
    return JobMessage(UUID(match[1].decode()), epoch, backend) if epoch <= _MAX_EPOCH else None


def message_from(job_id: str, epoch: int) -> JobMessage:
    """Convert the arguments of a message that arq has parsed.

    Raises:
        ValueError: the id or the epoch is invalid.
    """
    if type(epoch) is not int or not 0 <= epoch <= _MAX_EPOCH:
        raise ValueError(f"invalid epoch: {epoch}")
    return JobMessage(UUID(job_id), epoch)
