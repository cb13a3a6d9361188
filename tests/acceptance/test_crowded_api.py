"""Thousands of held connections and dozens of dry runs at once: health checks and other callers do not notice."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Final

import httpx
import pytest
from sqlalchemy import text

from api.http_protocol import raise_descriptor_limit
from tests.acceptance.scale import LONG
from tests.acceptance.stack import Stack, running_stack
from tests.support.keys import BEARER

VOLUMES, DRY_RUNS, CONNECTIONS = 13_000, 40, 9_000
#: Number of keys that the followers send in turn: each may hold 100 requests, so that the limit of all is met first.
KEYS: Final = 10
#: The longest that a response may take, as a part of the time in which all dry runs are answered. Requests that wait
#: behind dry runs take about as long as these, on any machine.
HEALTH_PART, POLL_PART = 0.1, 0.2
#: Number of descriptors that the client and the server need each.
DESCRIPTORS: Final = CONNECTIONS + 500
#: Number of connections that are opened at the same time.
_AT_ONCE: Final = 50


@dataclass
class Probe:
    """Sends one request again and again, and keeps the longest time that a response took, in seconds."""

    path: str
    longest: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)

    async def run(self, address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60, headers=BEARER) as http:
            while True:
                begun = time.monotonic()
                response = await http.get(self.path)
                self.longest = max(self.longest, time.monotonic() - begun)
                self.statuses[response.status_code] += 1
                await asyncio.sleep(0.02)


@asynccontextmanager
async def probing(stack: Stack, *paths: str) -> AsyncIterator[dict[str, Probe]]:
    """Send requests for these paths, by one client each, while the block runs."""
    probes = {path: Probe(path) for path in paths}
    tasks = [asyncio.ensure_future(probe.run(stack.address)) for probe in probes.values()]
    try:
        yield probes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def add_volumes(stack: Stack, count: int) -> None:
    async with stack.database.transaction() as session:
        await session.execute(
            text("""
                INSERT INTO volumes (id, name, backend, state, size, version, labels)
                SELECT gen_random_uuid(), 'volume-' || n, 'local', 'available', 1048576, 1, '{}'
                FROM generate_series(1, :count) AS n
            """),
            {"count": count},
        )


async def new_keys(http: httpx.AsyncClient, count: int) -> list[str]:
    """Make keys, each with a name of its own, and return them."""
    made = [await http.post("/keys", json={"name": f"follower-{number}", "role": "viewer"}) for number in range(count)]
    return [response.json()["key"] for response in made]


async def follow(stack: Stack, path: str, key: str, turns: asyncio.Semaphore) -> tuple[asyncio.StreamWriter, int]:
    """Open a connection, follow a job on it, and return the connection and the status of the response."""
    url = httpx.URL(stack.address)
    request = f"GET {path}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
    async with turns:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return writer, int(head.split()[1])


@asynccontextmanager
async def followers(stack: Stack, path: str, keys: Sequence[str], count: int) -> AsyncIterator[Counter[int]]:
    """Keep connections that follow a job for the duration of the block, and yield the statuses of their responses.

    They send the keys in turn. Those that are refused are kept, too.
    """
    turns = asyncio.Semaphore(_AT_ONCE)
    opened = await asyncio.gather(*(follow(stack, path, key, turns) for key in islice(cycle(keys), count)))
    try:
        yield Counter(status for _, status in opened)
    finally:
        for writer, _ in opened:
            writer.transport.abort()


async def dry_runs(stack: Stack, count: int) -> Counter[int]:
    """Send dry runs, all at once, and return the statuses of the responses."""
    async with stack.client() as http:
        body = {"percent": 1, "dry_run": True}
        responses = await asyncio.gather(*(http.post("/volumes/expand", json=body) for _ in range(count)))
        return Counter(response.status_code for response in responses)


def within_limits(probes: dict[str, Probe], seconds: float) -> bool:
    """Return whether all probes were answered well within the ``seconds`` that the dry runs have taken."""
    return all(
        set(probe.statuses) == {200} and probe.longest < seconds * (HEALTH_PART if path == "/healthz" else POLL_PART)
        for path, probe in probes.items()
    )


@pytest.mark.skipif(not LONG, reason="timed, with 9,000 connections; CISTERN_TEST_LONG=1 runs it")
async def test_held_connections_and_dry_runs_do_not_keep_others_waiting() -> None:
    if raise_descriptor_limit() < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors")
    async with running_stack(workers=0) as stack:
        command = ("api.cli", "serve")
        stack.address = await asyncio.to_thread(partial(stack.cluster.start_api, command=command, log=stack.log))
        await add_volumes(stack, VOLUMES)
        async with stack.client() as http:
            job_path = (await http.post("/volumes", json={"name": "one", "size": "1MiB"})).headers["Location"]
            keys = await new_keys(http, KEYS)
        async with (
            followers(stack, job_path, keys, CONNECTIONS) as followed,
            probing(stack, "/healthz", "/api/v1/volumes?limit=1", job_path) as probes,
        ):
            begun = time.monotonic()
            planned = await dry_runs(stack, DRY_RUNS)
            seconds = time.monotonic() - begun

        assert followed == {200: 400, 429: CONNECTIONS - 400}, "the keys are of one project"
        assert set(planned) == {200, 429}
        assert within_limits(probes, seconds), (probes, seconds)
