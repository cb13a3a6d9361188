"""Clients: each owns a volume, sends one request after another, and checks the bytes of its volume.

The requests are drawn from a seed; their timing depends on the storm.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx

MIB = 1 << 20
ENDED = {"succeeded", "partial", "failed", "cancelled"}
MARK = 64
_PATIENCE_SECONDS = 180


@dataclass
class Expectations:
    """The accepted requests with their expected effects, the API's status codes, and the faults so far."""

    jobs: int
    min_faults: int = 0
    accepted: dict[str, str] = field(default_factory=dict)
    growths: dict[str, int] = field(default_factory=dict)
    status_codes: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def needs_more(self) -> bool:
        """Return whether the load must continue: too few jobs or too few faults so far."""
        return len(self.accepted) < self.jobs or self.faults.total() < self.min_faults

    def kinds(self) -> Counter[str]:
        return Counter(self.accepted.values())


class RetryingCaller:
    """Repeats each request under the same idempotency key until it is answered."""

    def __init__(self, http: httpx.AsyncClient, expected: Expectations, name: str) -> None:
        self._http = http
        self._expected = expected
        self._keys: Iterator[str] = (f"{name}-{number}" for number in count())

    async def post(self, address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._accepted("POST", address, body)

    async def delete(self, address: str) -> dict[str, Any]:
        return await self._accepted("DELETE", address, None)

    async def get(self, address: str) -> dict[str, Any]:
        return dict((await self._answered("GET", address, 200)).json())

    async def _accepted(self, method: str, address: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request until it is accepted, and wait for the end of its job."""
        headers = {"Idempotency-Key": next(self._keys)}
        job = (await self._answered(method, address, 202, json=body, headers=headers)).json()
        self._expected.accepted[job["id"]] = job["kind"]
        if body and "by" in body:
            self._expected.growths[job["id"]] = body["by"]
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while job["status"] not in ENDED:
                wait = {"Prefer": "wait=5"}
                job = (await self._answered("GET", f"/jobs/{job['id']}", 200, headers=wait)).json()
        assert job["status"] == "succeeded", job
        return dict(job)

    async def _answered(self, method: str, address: str, status: int, **request: Any) -> httpx.Response:
        """Repeat the request while the volume or snapshot is busy (409) or the API is unavailable (503)."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                response = await self._http.request(method, address, **request)
                self._expected.status_codes[response.status_code] += 1
                if response.status_code == status:
                    return response
                assert response.status_code in (409, 503), response.text
                assert response.status_code == 503 or response.json()["code"] in ("volume-busy", "snapshot-busy")
                assert response.status_code == 409 or response.headers["Retry-After"]
                await asyncio.sleep(0.05)


class Client:
    """Takes one volume through random operations, and asserts that its bytes are the expected ones."""

    def __init__(self, caller: RetryingCaller, random: Random, name: str) -> None:
        self._caller = caller
        self._random = random
        self._name = name
        self._numbers = count()
        self._snapshots: dict[str, bytes] = {}
        self._volume: dict[str, Any] = {}

    async def run(self, needs_more: Callable[[], bool]) -> None:
        await self._create()
        while needs_more():
            await self._random.choice(self._steps())()
        while self._snapshots:
            await self._delete_snapshot()
        await self._caller.delete(f"/volumes/{self._volume['id']}")
        assert not Path(self._volume["path"]).exists()

    def _steps(self) -> list[Callable[[], Awaitable[None]]]:
        steps: list[Callable[[], Awaitable[None]]] = [self._grow, self._grow, self._take_snapshot]
        if self._snapshots:
            steps += [self._restore, self._clone, self._delete_snapshot]
        return steps

    async def _create(self) -> None:
        body = {"name": self._name, "size": 2 * MIB, "labels": {"client": self._name[-1]}}
        job = await self._caller.post("/volumes", body)
        self._volume = await self._caller.get(f"/volumes/{job['volume_id']}")
        self._write()

    async def _grow(self) -> None:
        before = self._read()
        body = {"by": self._random.randint(1, 4) * MIB}
        job = await self._caller.post(f"/volumes/{self._volume['id']}/expand", body)
        assert Path(self._volume["path"]).stat().st_size >= job["params"]["to_size"]
        assert self._read() == before

    async def _take_snapshot(self) -> None:
        self._write()
        body = {"name": f"snapshot-{next(self._numbers)}"}
        job = await self._caller.post(f"/volumes/{self._volume['id']}/snapshots", body)
        self._snapshots[job["snapshot_id"]] = self._read()
        self._write()

    async def _restore(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        await self._caller.post(f"/snapshots/{snapshot}/restore")
        assert self._read() == self._snapshots[snapshot], "the restored bytes differ"

    async def _clone(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        body = {"name": f"{self._name}-clone-{next(self._numbers)}", "from_snapshot": snapshot}
        job = await self._caller.post("/volumes", body)
        clone = await self._caller.get(f"/volumes/{job['volume_id']}")
        assert _mark(clone["path"]) == self._snapshots[snapshot], "the cloned bytes differ"
        await self._caller.delete(f"/volumes/{clone['id']}")

    async def _delete_snapshot(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        await self._caller.delete(f"/snapshots/{snapshot}")
        del self._snapshots[snapshot]

    def _write(self) -> None:
        with Path(self._volume["path"]).open("r+b") as data:
            data.write(self._random.randbytes(MARK))

    def _read(self) -> bytes:
        return _mark(self._volume["path"])


async def grow_all(caller: RetryingCaller, random: Random, needs_more: Callable[[], bool]) -> None:
    """Expand the volumes of some clients in one bulk job, again and again."""
    while needs_more():
        body = {"by": MIB, "max_concurrent": 6, "labels": {"client": str(random.randrange(10))}}
        job = await caller.post("/volumes/expand", body)
        progress = job["progress"]
        assert progress["failed"] == 0, progress


async def run_clients(http: httpx.AsyncClient, expected: Expectations, *, clients: int, seed: int) -> None:
    """Run clients, and two loops of bulk jobs across their volumes, until there were enough jobs and faults."""
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            name = f"client-{number}"
            client = Client(RetryingCaller(http, expected, name), Random(f"{seed} {name}"), name)
            group.create_task(client.run(expected.needs_more))
        for number in range(2):
            caller = RetryingCaller(http, expected, f"bulk-{number}")
            group.create_task(grow_all(caller, Random(f"{seed} bulk {number}"), expected.needs_more))


def _mark(path: str) -> bytes:
    with Path(path).open("rb") as data:
        return data.read(MARK)
