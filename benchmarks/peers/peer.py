"""The commands of a peer: describe it, enqueue jobs at once or one by one, and for some peers run the worker."""

# ruff: noqa: T201, S311 - the output is the result, and the random intervals are not cryptographic

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

#: Minimum and maximum interval between two jobs of a trickle, in seconds; random, so that no polling is in phase.
PAUSES = (0.02, 0.12)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer in one configuration."""

    name: str
    #: Arguments of `python` that start its worker.
    worker: tuple[str, ...]
    settings: str
    keeps: str
    loses: str
    #: Approximate jobs per second (see RESULTS.md), which determine the size of the first round.
    expected_rate: int
    enqueue: Callable[[int], Awaitable[object]]
    enqueue_many: Callable[[Iterable[int]], Awaitable[None]]
    connected: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    #: False for the lower bound of the cost.
    has_queue: bool = True

    def about(self) -> dict[str, object]:
        """Return its description for the tables, and the command of its worker."""
        fields = ("name", "worker", "settings", "keeps", "loses", "expected_rate", "has_queue")
        return {name: getattr(self, name) for name in fields}


def run_command(module: Any, command: Sequence[str]) -> None:
    """Run one command of a peer's module."""
    logging.basicConfig(level=logging.ERROR)
    match command:
        case ["about"]:
            print(json.dumps([peer.about() for peer in module.PEERS]))
        case ["work", name]:
            module.run_worker(name)
        case ["enqueue", name, count]:
            asyncio.run(_enqueue(_named(module.PEERS, name), int(count)))
        case ["trickle", name, count]:
            print(json.dumps(asyncio.run(_trickle(_named(module.PEERS, name), int(count)))))
        case _:
            sys.exit(f"unknown command: {' '.join(command)}")


def _named(peers: Iterable[Peer], name: str) -> Peer:
    return next(peer for peer in peers if peer.name == name)


async def _enqueue(peer: Peer, count: int) -> None:
    async with peer.connected():
        await peer.enqueue_many(range(1, count + 1))


async def _trickle(peer: Peer, count: int) -> list[tuple[int, int]]:
    """Enqueue jobs one by one; return when each was sent and when that returned, in wall-clock ns."""
    times = []
    async with peer.connected():
        for row in range(1, count + 1):
            await asyncio.sleep(random.uniform(*PAUSES))
            sent = time.time_ns()
            await peer.enqueue(row)
            times.append((sent, time.time_ns()))
    return times
