"""What the race asks of a peer: what it is, jobs at once, jobs now and then, and with some also to be the worker."""

# ruff: noqa: T201, S311 - what is printed is the answer, and irregular intervals need not be secret

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

#: Between two enqueues of a trickle, in seconds: irregular, so that no polling worker falls into step.
PAUSES = (0.02, 0.12)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer, in one of the ways in which it can be run."""

    name: str
    #: How its worker is started, after `python`.
    worker: tuple[str, ...]
    settings: str
    keeps: str
    loses: str
    #: About how many jobs it does in a second (in RESULTS.md): what its first round is planned by.
    pace: int
    one: Callable[[int], Awaitable[object]]
    many: Callable[[Iterable[int]], Awaitable[None]]
    connected: Callable[[], AbstractAsyncContextManager[object]] = nullcontext

    def about(self) -> dict[str, object]:
        """What a table says of it, and how to start it."""
        told = ("name", "worker", "settings", "keeps", "loses", "pace")
        return {name: getattr(self, name) for name in told}


def answer(module: Any, question: Sequence[str]) -> None:
    """Answer one question of the race to a peer's file."""
    logging.basicConfig(level=logging.ERROR)
    match question:
        case ["about"]:
            print(json.dumps([peer.about() for peer in module.PEERS]))
        case ["work", name]:
            module.work_as(name)
        case ["enqueue", name, count]:
            asyncio.run(_enqueue(_named(module.PEERS, name), int(count)))
        case ["trickle", name, count]:
            print(json.dumps(asyncio.run(_trickle(_named(module.PEERS, name), int(count)))))
        case _:
            sys.exit(f"not a question: {' '.join(question)}")


def _named(peers: Iterable[Peer], name: str) -> Peer:
    return next(peer for peer in peers if peer.name == name)


async def _enqueue(peer: Peer, count: int) -> None:
    async with peer.connected():
        await peer.many(range(1, count + 1))


async def _trickle(peer: Peer, count: int) -> list[tuple[int, int]]:
    """When each job was sent, and when that was answered (nanoseconds of the clock on the wall)."""
    times = []
    async with peer.connected():
        for row in range(1, count + 1):
            await asyncio.sleep(random.uniform(*PAUSES))
            sent = time.time_ns()
            await peer.one(row)
            times.append((sent, time.time_ns()))
    return times
