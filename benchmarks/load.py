"""A load generator in a process of its own: finished requests over a few connections that stay open.

Reads one JSON object from standard input, the plan that `asking` draws up, and answers with another one. It does as
little as it can for a request: it writes bytes that were there before, and looks at the status and the length of what
comes back.
"""

# ruff: noqa: INP001, T201 - no package, and what is printed is the answer

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from statistics import quantiles
from typing import Any


@dataclass
class Load:
    """What is still to be asked, and what came of what was."""

    requests: Any
    ends: float
    answers: Counter[int] = field(default_factory=Counter)
    #: When each answer was there, and how long it took.
    times: list[tuple[float, float]] = field(default_factory=list)

    def next(self) -> bytes | None:
        """The next request; None when it is over."""
        return next(self.requests, None) if time.perf_counter() < self.ends else None


class Connection(asyncio.Protocol):
    """One connection, which asks as soon as it was answered."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._got = b""
        self._sent = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Take an answer down, and go on."""
        self._got += data
        end = self._got.find(b"\r\n\r\n") + 4
        if end < 4 or len(self._got) < end + _length(self._got[:end]):  # noqa: PLR2004 - the blank line itself
            return
        now = time.perf_counter()
        self._load.answers[int(self._got[9:12])] += 1
        self._load.times.append((now, now - self._sent))
        self._got = b""
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        """End."""
        if not self.over.done():
            self.over.set_result(None)

    def _ask(self) -> None:
        request = self._load.next()
        if request is None:
            self._transport.close()
        else:
            self._sent = time.perf_counter()
            self._transport.write(request)


def _length(head: bytes) -> int:
    place = head.lower().find(b"content-length:")
    return int(head[place + 15 : head.index(b"\r", place)]) if place >= 0 else 0


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Ask until the time is over or nothing is left to be asked."""
    requests = [request.encode() for request in plan["requests"]]
    load = Load(cycle(requests) if plan["cycle"] else iter(requests), time.perf_counter() + plan["seconds"])
    began, used = time.time(), time.process_time()
    connect = asyncio.get_running_loop().create_connection
    opened = [await connect(lambda: Connection(load), "127.0.0.1", plan["port"]) for _ in range(plan["connections"])]
    await asyncio.gather(*(connection.over for _, connection in opened))
    return {"began": began, "cpu": time.process_time() - used, **summary(load)}


def summary(load: Load) -> dict[str, Any]:
    """Count from the tenth part of all answers on, when everything is warm."""
    first = len(load.times) // 10
    counted = load.times[first:]
    took = [seconds * 1000 for _, seconds in counted]
    return {
        "answers": {str(status): count for status, count in load.answers.items()},
        "requests": len(load.times),
        "rate": (len(counted) - 1) / (counted[-1][0] - counted[0][0]),
        "p50": quantiles(took, n=100)[49],
        "p99": quantiles(took, n=100)[98],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
