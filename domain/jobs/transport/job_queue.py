"""The doorbell: the only file of the domain that speaks to Redis.

A message (see `messages`) says that a row may be ready to be claimed, and nothing else, so whoever can write to Redis
can at most make a worker look into PostgreSQL. Losing every message loses no job.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Final, Self
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.utils import timestamp_ms
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from domain.batching import Batcher
from domain.errors import Unavailable
from domain.jobs.model import Dispatch
from domain.jobs.transport.messages import deserialize, message_id, serialize, write_message
from domain.jobs.transport.write_errors import WriteErrors

QUEUE_NAME: Final = "cistern:queue"
_CHANNEL: Final = "cistern:job-changed"
#: A list that idle workers block on. It has an element for each message that was rung, up to as many as there can
#: reasonably be idle workers; whoever finds no more messages empties it.
WAKEUPS: Final = "cistern:wakeups"
_MAX_WAKEUPS: Final = 32
#: As long as arq keeps a message that nobody takes; by then it was found lost and sent again, or its row is gone.
_MESSAGE_LIFETIME_MS: Final = 24 * 3600 * 1000
#: A message is due as if it had been sent so long ago: a worker's clock may be behind ours, or be set back. Not as if
#: longer ago, for what stock producers send comes after it.
_MAX_CLOCK_SKEW_MS: Final = 3600 * 1000
#: So many messages go to Redis in one round trip.
_MAX_BATCH: Final = 500
#: Written only to see whether it can be.
PING_KEY: Final = "cistern:written"
#: A request must be answered within a second although Redis is away.
_TIMEOUT_SECONDS: Final = 0.8

_MESSAGE_KEYS: Final = (job_key_prefix, retry_key_prefix, in_progress_key_prefix)

#: Takes messages out of the queue, with all that arq keeps of them. Each id is sent once.
_ACKNOWLEDGE: Final = f"""
for _, id in ipairs(ARGV) do
    redis.call('ZREM', KEYS[1], id)
    redis.call('DEL', {", ".join(f"'{prefix}' .. id" for prefix in _MESSAGE_KEYS)})
end
"""

log = structlog.get_logger(__name__)


class QueueUnavailable(Unavailable):
    """Redis does not answer at the moment."""

    code = "queue-unavailable"


class QueueRefusesWrites(QueueUnavailable):
    """Redis answers, but refuses to be written to."""

    code = "queue-refuses-writes"


class JobQueue:
    """One Redis, as a bell and as a loudspeaker."""

    def __init__(self, redis: ArqRedis) -> None:
        redis.job_serializer = serialize
        redis.job_deserializer = deserialize
        redis.default_queue_name = QUEUE_NAME
        self.redis = redis
        self.write_errors = WriteErrors()
        self._acknowledge = redis.register_script(_ACKNOWLEDGE)
        self._dispatches = Batcher(self._dispatch_all, max_batch=_MAX_BATCH, drop_cancelled=True)
        self._acknowledgements = Batcher(self._acknowledge_all, max_batch=_MAX_BATCH)

    @classmethod
    def open(cls, url: str) -> Self:
        """Prepare connections to the Redis at ``url``; none is made before the first use."""
        redis = ArqRedis.from_url(
            url,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            socket_timeout=5,
            # Once more at once, for a pooled connection that died unnoticed. OSError is what connecting raises.
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
        )
        return cls(redis)

    async def dispatch(self, dispatches: Iterable[Dispatch]) -> None:
        """Announce jobs. Ringing twice is ringing once; a ring that is lost is found by housekeeping."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):  # a ring may have to wait for those before it
                await asyncio.gather(*map(self._dispatches.submit, dispatches))
        except TimeoutError:
            log.warning("dispatch.failed", error="Redis takes too long")

    async def _dispatch_all(self, dispatches: Sequence[Dispatch]) -> Sequence[None]:
        """Send messages in the form of arq's `enqueue_job`, which takes three round trips for each."""
        now = timestamp_ms()
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), self.redis.pipeline(transaction=True) as pipe:
                for dispatch in dispatches:
                    pipe.set(
                        job_key_prefix + message_id(dispatch),
                        write_message(dispatch, sent_ms=now),
                        px=_MESSAGE_LIFETIME_MS,
                        nx=True,
                    )
                pipe.zadd(
                    QUEUE_NAME, {message_id(dispatch): now - _MAX_CLOCK_SKEW_MS for dispatch in dispatches}, nx=True
                )
                pipe.lpush(WAKEUPS, *[b""] * min(len(dispatches), _MAX_WAKEUPS))
                pipe.ltrim(WAKEUPS, 0, _MAX_WAKEUPS - 1)
                await pipe.execute()
            self.write_errors.clear()
        except ResponseError as error:
            self.write_errors.note(error)
        except (RedisError, OSError) as error:
            log.warning("dispatch.failed", error=str(error))
        return [None] * len(dispatches)

    async def missing(self, dispatches: Sequence[Dispatch]) -> list[Dispatch]:
        """Tell which of these have no message in the queue, and clear away what may be left of it.

        Raises:
            QueueUnavailable: Redis does not answer, or refuses to be written to.
        """
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for dispatch in dispatches:
                    pipe.zscore(QUEUE_NAME, message_id(dispatch))
                scores = await pipe.execute()
            missing = [dispatch for dispatch, score in zip(dispatches, scores, strict=True) if score is None]
            if missing:  # what is left of a message outside of the queue would keep it from being sent again
                await self.redis.delete(*(job_key_prefix + message_id(dispatch) for dispatch in missing))
        except ResponseError as error:
            self.write_errors.note(error)
            raise QueueRefusesWrites from error
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error
        return missing

    def acknowledge(self, dispatch: Dispatch) -> "asyncio.Future[None]":
        """Give a message up: the row is claimed, so Redis need not know of it any more.

        It is on its way then; who wants to know when it has arrived awaits it. If it fails, the message is delivered
        again, and claims nothing.
        """
        return self._acknowledgements.submit(dispatch)

    async def _acknowledge_all(self, dispatches: Sequence[Dispatch]) -> Sequence[None]:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self._acknowledge(keys=[QUEUE_NAME], args=[message_id(dispatch) for dispatch in dispatches])
        except ResponseError as error:
            self.write_errors.note(error)
        except (RedisError, OSError) as error:
            log.warning("acknowledge.failed", error=str(error))
        return [None] * len(dispatches)

    async def announce(self, *job_ids: UUID) -> None:
        """Tell whoever watches that jobs have changed. Nobody relies on hearing it."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self.redis.publish(_CHANNEL, " ".join(map(str, job_ids)))
        except (RedisError, OSError) as error:
            log.debug("announce.failed", error=str(error))

    async def announcements(self) -> AsyncIterator[UUID]:
        """Hear which jobs change, from now on.

        Raises:
            QueueUnavailable: Redis does not answer, or not any more.
        """
        try:
            async with self.redis.pubsub() as channel:
                await channel.subscribe(_CHANNEL)
                while True:
                    message = await channel.get_message(ignore_subscribe_messages=True, timeout=1)
                    if message is not None:
                        for word in message["data"].split():
                            with suppress(ValueError):  # anybody may say anything on a channel
                                yield UUID(word.decode())
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error

    async def ping(self) -> None:
        """Ask Redis for a sign of life: a little write, for one that cannot be written to is of no use.

        Raises:
            QueueRefusesWrites: it lives, but does not take it.
            QueueUnavailable: there is none.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self.redis.set(PING_KEY, b"", px=1000)
        except ResponseError as error:
            self.write_errors.note(error)
            raise QueueRefusesWrites from error
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error
        self.write_errors.clear()

    async def close(self) -> None:
        """Close every connection."""
        await self.redis.aclose(close_connection_pool=True)
