"""Storms: schedules of faults against a stack under client load."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random

import redis.asyncio

from tests.acceptance.clients import Expectations
from tests.acceptance.stack import Stack
from tests.support.embedded import restart_redis_empty

Fault = Callable[[Stack, Random], Awaitable[None]]


async def kill_a_worker(stack: Stack, random: Random) -> None:
    await asyncio.to_thread(stack.kill, random.choice(stack.workers))


async def flush_redis(stack: Stack, _: Random) -> None:
    client = redis.asyncio.Redis.from_url(stack.servers.redis_url)
    await client.flushall()
    await client.aclose()


async def empty_redis(stack: Stack, random: Random) -> None:
    """Kill Redis, leave it down for up to 2 s, and start it without its data."""
    await asyncio.to_thread(stack.servers.redis.stop, signal.SIGKILL)
    await asyncio.sleep(random.uniform(0, 2))
    await asyncio.to_thread(restart_redis_empty, stack.servers)


async def crash_postgresql(stack: Stack, random: Random) -> None:
    await asyncio.to_thread(stack.servers.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(stack.servers.postgres.start)


async def pause_a_worker(stack: Stack, random: Random) -> None:
    """Pause a worker (SIGSTOP) for longer than its leases, so that others take over, then resume it."""
    worker = random.choice(stack.workers)
    worker.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(stack.cluster.settings.lease_seconds * random.uniform(1.2, 2))
    finally:
        worker.send_signal(signal.SIGCONT)


ALL_FAULTS = (kill_a_worker, flush_redis, empty_redis, crash_postgresql, pause_a_worker)

#: Faults, and the interval between two of them in seconds.
STORMS: dict[str, tuple[Sequence[Fault], float]] = {
    "workers killed": ([kill_a_worker], 3),
    "redis flushed": ([flush_redis], 5),
    "redis killed and emptied": ([empty_redis], 10),
    "postgresql crashed": ([crash_postgresql], 10),
    "workers paused": ([pause_a_worker], 5),
    "all at random": (ALL_FAULTS, 3),
}
SHORT_STORMS: dict[str, tuple[Sequence[Fault], float]] = {"one of each": (ALL_FAULTS, 1)}


@asynccontextmanager
async def run_storm(name: str, stack: Stack, expected: Expectations, *, seed: int) -> AsyncIterator[None]:
    """Inject the faults of a storm for the duration of the block."""
    faults, interval = (STORMS | SHORT_STORMS)[name]
    over = asyncio.Event()

    async def inject() -> None:
        for fault in shuffled_forever(faults, random := Random(f"{seed} {name}")):
            if await _is_set_within(over, interval):
                return
            await fault(stack, random)
            expected.faults[fault.__name__] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(inject())
        try:
            yield
        finally:
            over.set()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def shuffled_forever(faults: Sequence[Fault], random: Random) -> Iterator[Fault]:
    """Yield all faults in a random order, again and again, each time in a new order."""
    while True:
        yield from random.sample(faults, len(faults))
