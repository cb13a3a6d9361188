"""The doorbell: the only file of the domain that speaks arq and Redis (`refusals` only knows their errors).

A message says that a row may be ready to be claimed. It carries (job id, ring) as JSON and nothing else, so whoever
can write to Redis can at most make a worker look into PostgreSQL. Losing every message loses no job.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Self
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from domain.errors import Unavailable
from domain.jobs.model import Ring
from domain.jobs.refusals import Refusals

QUEUE_NAME: Final = "cistern:queue"
FUNCTION_NAME: Final = "run_job"
_CHANNEL: Final = "cistern:job-changed"
#: Written only to see whether it can be.
WRITTEN: Final = "cistern:written"
#: A request must be answered within a second although Redis is away.
_PATIENCE_SECONDS: Final = 0.8

_MESSAGE_KEYS: Final = (job_key_prefix, retry_key_prefix, in_progress_key_prefix)

log = structlog.get_logger(__name__)

serialize: Callable[[dict[str, Any]], bytes] = lambda message: json.dumps(message).encode()  # noqa: E731
deserialize: Callable[[bytes], dict[str, Any]] = json.loads


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
        self.refusals = Refusals()

    @classmethod
    def open(cls, url: str) -> Self:
        """Prepare connections to the Redis at ``url``; none is made before the first use."""
        redis = ArqRedis.from_url(
            url,
            socket_connect_timeout=_PATIENCE_SECONDS,
            socket_timeout=5,
            # Once more at once, for a pooled connection that died unnoticed. OSError is what connecting raises.
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
        )
        return cls(redis)

    async def ring(self, rings: Iterable[Ring]) -> None:
        """Announce jobs. Ringing twice is ringing once; a ring that is lost is found by housekeeping."""
        try:
            for ring in rings:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    sent = await self.redis.enqueue_job(
                        FUNCTION_NAME, str(ring.job_id), ring.ring, _job_id=message_id(ring)
                    )
                if sent:  # else it was there already, and nothing was written
                    self.refusals.over()
        except ResponseError as error:
            self.refusals.met(error)
        except (RedisError, OSError) as error:
            log.warning("ring.lost", error=str(error))

    async def missing(self, rings: Sequence[Ring]) -> list[Ring]:
        """Tell which of these have no message in the queue, and clear away what may be left of it.

        Raises:
            QueueUnavailable: Redis does not answer, or refuses to be written to.
        """
        try:
            async with self.redis.pipeline(transaction=False) as pipe:
                for ring in rings:
                    pipe.zscore(QUEUE_NAME, message_id(ring))
                scores = await pipe.execute()
            missing = [ring for ring, score in zip(rings, scores, strict=True) if score is None]
            if missing:  # what is left of a message outside of the queue would keep it from being sent again
                await self.redis.delete(*(job_key_prefix + message_id(ring) for ring in missing))
        except ResponseError as error:
            self.refusals.met(error)
            raise QueueRefusesWrites from error
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error
        return missing

    async def acknowledge(self, ring: Ring) -> None:
        """Give a message up: the row is claimed, so Redis need not know of it any more.

        If it fails, the message is delivered again, and claims nothing.
        """
        message = message_id(ring)
        try:
            async with self.redis.pipeline(transaction=True) as pipe:
                pipe.zrem(QUEUE_NAME, message)
                pipe.delete(*(prefix + message for prefix in _MESSAGE_KEYS))
                await pipe.execute()
        except ResponseError as error:
            self.refusals.met(error)
        except (RedisError, OSError) as error:
            log.warning("acknowledgement.lost", error=str(error))

    async def announce(self, job_id: UUID) -> None:
        """Tell whoever watches that a job has changed. Nobody relies on hearing it."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self.redis.publish(_CHANNEL, str(job_id))
        except (RedisError, OSError) as error:
            log.debug("announcement.lost", error=str(error))

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
                        with suppress(ValueError):  # anybody may say anything on a channel
                            yield UUID(message["data"].decode())
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error

    async def ping(self) -> None:
        """Ask Redis for a sign of life: a little write, for one that cannot be written to is of no use.

        Raises:
            QueueRefusesWrites: it lives, but does not take it.
            QueueUnavailable: there is none.
        """
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self.redis.set(WRITTEN, b"", px=1000)
        except ResponseError as error:
            self.refusals.met(error)
            raise QueueRefusesWrites from error
        except (RedisError, OSError) as error:
            raise QueueUnavailable from error
        self.refusals.over()

    async def close(self) -> None:
        """Close every connection."""
        await self.redis.aclose(close_connection_pool=True)


def message_id(ring: Ring) -> str:
    """The arq id of a ring: never used for two things, so that the same ring twice is one message."""
    return f"{ring.job_id}:{ring.ring}"
