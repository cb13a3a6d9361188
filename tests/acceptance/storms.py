"""What can go wrong with a stack while it is at work, again and again."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random

import redis.asyncio

from tests.acceptance.clients import Expectations
from tests.acceptance.stack import Stack

Strike = Callable[[Stack, Random], Awaitable[None]]


async def kill_a_worker(stack: Stack, random: Random) -> None:
    await asyncio.to_thread(stack.kill, random.choice(stack.fleet))


async def flush_redis(stack: Stack, _: Random) -> None:
    client = redis.asyncio.Redis.from_url(stack.servers.redis_url)
    await client.flushall()
    await client.aclose()


async def empty_redis(stack: Stack, random: Random) -> None:
    """Kill Redis, have it away for a while, and start it with nothing in it."""
    await asyncio.to_thread(stack.servers.kill_redis)
    await asyncio.sleep(random.uniform(0, 2))
    await asyncio.to_thread(stack.servers.restart_redis, empty=True)


async def crash_postgresql(stack: Stack, random: Random) -> None:
    await asyncio.to_thread(stack.servers.stop_postgres, "immediate")
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(stack.servers.start_postgres)


async def put_a_worker_to_sleep(stack: Stack, random: Random) -> None:
    """Stop a worker for so long that others must take over, then let it go on as if nothing had been."""
    worker = random.choice(stack.fleet)
    worker.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(stack.cluster.settings.lease_seconds * random.uniform(1.2, 2))
    finally:
        worker.send_signal(signal.SIGCONT)


EACH = (kill_a_worker, flush_redis, empty_redis, crash_postgresql, put_a_worker_to_sleep)

#: What strikes, and every how many seconds.
STORMS: dict[str, tuple[Sequence[Strike], float]] = {
    "workers killed": ([kill_a_worker], 3),
    "redis flushed": ([flush_redis], 5),
    "redis killed and emptied": ([empty_redis], 10),
    "postgresql crashed": ([crash_postgresql], 10),
    "workers asleep": ([put_a_worker_to_sleep], 5),
    "all at random": (EACH, 3),
}
SHORT_STORMS: dict[str, tuple[Sequence[Strike], float]] = {"one of each": (EACH, 1)}


@asynccontextmanager
async def raging(name: str, stack: Stack, expected: Expectations, *, seed: int) -> AsyncIterator[None]:
    """Have a storm rage as long as the block lasts, and come to rest when it ends."""
    strikes, every = (STORMS | SHORT_STORMS)[name]
    calm = asyncio.Event()

    async def rage() -> None:
        for strike in drawn(strikes, random := Random(f"{seed} {name}")):
            if await _true_within(calm, every):
                return
            await strike(stack, random)
            expected.strikes[strike.__name__] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(rage())
        try:
            yield
        finally:
            calm.set()


async def _true_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def drawn(strikes: Sequence[Strike], random: Random) -> Iterator[Strike]:
    """All of them in some order, then in another one, for ever."""
    while True:
        yield from random.sample(strikes, len(strikes))
