"""A load generator in its own process: sends prepared requests over a few persistent connections.

Reads the plan of `http_load`, a JSON object, from standard input, and prints the results as another one. To use little
CPU time per request, it writes prepared bytes, and parses only the status and the length of the response.
"""

# ruff: noqa: INP001, T201 - not a package, and the output is the result

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
    """The remaining requests, and the responses so far."""

    requests: Any
    deadline: float
    statuses: Counter[int] = field(default_factory=Counter)
    #: For each response, the time of its arrival and its latency in seconds.
    times: list[tuple[float, float]] = field(default_factory=list)

    def next(self) -> bytes | None:
        """Return the next request; None at the end of the load."""
        return next(self.requests, None) if time.perf_counter() < self.deadline else None


class Connection(asyncio.Protocol):
    """A connection that sends the next request as soon as a response arrives."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._sent = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        self._send_next()

    def data_received(self, data: bytes) -> None:
        """Record a complete response, and send the next request."""
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4 or len(self._received) < end + body_length(self._received[:end]):  # noqa: PLR2004 - the blank line itself
            return
        now = time.perf_counter()
        self._load.statuses[int(self._received[9:12])] += 1
        self._load.times.append((now, now - self._sent))
        self._received = b""
        self._send_next()

    def connection_lost(self, _: Exception | None) -> None:
        """Mark the connection as closed."""
        if not self.closed.done():
            self.closed.set_result(None)

    def _send_next(self) -> None:
        request = self._load.next()
        if request is None:
            self._transport.close()
        else:
            self._sent = time.perf_counter()
            self._transport.write(request)


def body_length(head: bytes) -> int:
    """Return how many bytes follow the headers of a response."""
    start = head.lower().find(b"content-length:")
    return int(head[start + 15 : head.index(b"\r", start)]) if start >= 0 else 0


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Send requests until the time is over or none is left."""
    requests = [request.encode() for request in plan["requests"]]
    load = Load(cycle(requests) if plan["cycle"] else iter(requests), time.perf_counter() + plan["seconds"])
    began, used = time.time(), time.process_time()
    connect = asyncio.get_running_loop().create_connection
    connections = [
        await connect(lambda: Connection(load), "127.0.0.1", plan["port"]) for _ in range(plan["connections"])
    ]
    await asyncio.gather(*(connection.closed for _, connection in connections))
    return {"began": began, "cpu": time.process_time() - used, **summary(load)}


def summary(load: Load) -> dict[str, Any]:
    """Summarize the responses after the first tenth, which are the warm-up."""
    first = len(load.times) // 10
    counted = load.times[first:]
    latencies = [seconds * 1000 for _, seconds in counted]
    return {
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "requests": len(load.times),
        "rate": (len(counted) - 1) / (counted[-1][0] - counted[0][0]),
        "p50": quantiles(latencies, n=100)[49],
        "p99": quantiles(latencies, n=100)[98],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
