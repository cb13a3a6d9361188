"""Customers: each has a volume of its own, asks for one thing after another, and looks at its bytes.

What they ask for is drawn from a seed; when it happens is up to the storm.
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
    """What was accepted, and how the front of the house behaved."""

    jobs: int
    strikes_wanted: int = 0
    accepted: dict[str, str] = field(default_factory=dict)
    growths: dict[str, int] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    strikes: Counter[str] = field(default_factory=Counter)

    def goes_on(self) -> bool:
        """Whether more is to be asked for: enough jobs, and enough of a storm over them."""
        return len(self.accepted) < self.jobs or self.strikes.total() < self.strikes_wanted

    def kinds(self) -> Counter[str]:
        return Counter(self.accepted.values())


class Caller:
    """Somebody who asks until they are answered, always under the same key."""

    def __init__(self, http: httpx.AsyncClient, expected: Expectations, name: str) -> None:
        self._http = http
        self._book = expected
        self._keys: Iterator[str] = (f"{name}-{number}" for number in count())

    async def post(self, address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._accepted("POST", address, body)

    async def delete(self, address: str) -> dict[str, Any]:
        return await self._accepted("DELETE", address, None)

    async def get(self, address: str) -> dict[str, Any]:
        return dict((await self._answered("GET", address, 200)).json())

    async def _accepted(self, method: str, address: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Have a request accepted, and wait for the end of its job."""
        headers = {"Idempotency-Key": next(self._keys)}
        job = (await self._answered(method, address, 202, json=body, headers=headers)).json()
        self._book.accepted[job["id"]] = job["kind"]
        if body and "by" in body:
            self._book.growths[job["id"]] = body["by"]
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while job["status"] not in ENDED:
                wait = {"Prefer": "wait=5"}
                job = (await self._answered("GET", f"/jobs/{job['id']}", 200, headers=wait)).json()
        assert job["status"] == "succeeded", job
        return dict(job)

    async def _answered(self, method: str, address: str, status: int, **request: Any) -> httpx.Response:
        """Ask again for as long as the volume is busy, or the front of the house says that it cannot."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                answer = await self._http.request(method, address, **request)
                self._book.answers[answer.status_code] += 1
                if answer.status_code == status:
                    return answer
                assert answer.status_code in (409, 503), answer.text
                assert answer.status_code == 503 or answer.json()["code"] in ("volume-busy", "snapshot-busy")
                assert answer.status_code == 409 or answer.headers["Retry-After"]
                await asyncio.sleep(0.05)


class Customer:
    """One volume's life, step by step; its owner is never surprised by its bytes."""

    def __init__(self, caller: Caller, random: Random, name: str) -> None:
        self._caller = caller
        self._random = random
        self._name = name
        self._numbers = count()
        self._snapshots: dict[str, bytes] = {}
        self._volume: dict[str, Any] = {}

    async def live(self, goes_on: Callable[[], bool]) -> None:
        await self._create()
        while goes_on():
            await self._random.choice(self._steps())()
        while self._snapshots:
            await self._forget()
        await self._caller.delete(f"/volumes/{self._volume['id']}")
        assert not Path(self._volume["path"]).exists()

    def _steps(self) -> list[Callable[[], Awaitable[None]]]:
        steps: list[Callable[[], Awaitable[None]]] = [self._grow, self._grow, self._take]
        if self._snapshots:
            steps += [self._restore, self._clone, self._forget]
        return steps

    async def _create(self) -> None:
        wish = {"name": self._name, "size": 2 * MIB, "labels": {"customer": self._name[-1]}}
        job = await self._caller.post("/volumes", wish)
        self._volume = await self._caller.get(f"/volumes/{job['volume_id']}")
        self._write()

    async def _grow(self) -> None:
        present = self._read()
        wish = {"by": self._random.randint(1, 4) * MIB}
        job = await self._caller.post(f"/volumes/{self._volume['id']}/expand", wish)
        assert Path(self._volume["path"]).stat().st_size >= job["params"]["to_size"]
        assert self._read() == present

    async def _take(self) -> None:
        self._write()
        body = {"name": f"snapshot-{next(self._numbers)}"}
        job = await self._caller.post(f"/volumes/{self._volume['id']}/snapshots", body)
        self._snapshots[job["snapshot_id"]] = self._read()
        self._write()

    async def _restore(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        await self._caller.post(f"/snapshots/{snapshot}/restore")
        assert self._read() == self._snapshots[snapshot], "restored"

    async def _clone(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        body = {"name": f"{self._name}-clone-{next(self._numbers)}", "from_snapshot": snapshot}
        job = await self._caller.post("/volumes", body)
        clone = await self._caller.get(f"/volumes/{job['volume_id']}")
        assert _mark(clone["path"]) == self._snapshots[snapshot], "cloned"
        await self._caller.delete(f"/volumes/{clone['id']}")

    async def _forget(self) -> None:
        snapshot = self._random.choice(list(self._snapshots))
        await self._caller.delete(f"/snapshots/{snapshot}")
        del self._snapshots[snapshot]

    def _write(self) -> None:
        with Path(self._volume["path"]).open("r+b") as data:
            data.write(self._random.randbytes(MARK))

    def _read(self) -> bytes:
        return _mark(self._volume["path"])


async def grow_all(caller: Caller, random: Random, goes_on: Callable[[], bool]) -> None:
    """Grow the volumes of some customers together, again and again."""
    while goes_on():
        body = {"by": MIB, "max_concurrent": 6, "labels": {"customer": str(random.randrange(10))}}
        job = await caller.post("/volumes/expand", body)
        progress = job["progress"]
        assert progress["failed"] == 0, progress


async def live(http: httpx.AsyncClient, expected: Expectations, *, customers: int, seed: int) -> None:
    """Have customers live at the same time until there were enough jobs, and a bulk or two run across them."""
    async with asyncio.TaskGroup() as group:
        for number in range(customers):
            name = f"customer-{number}"
            customer = Customer(Caller(http, expected, name), Random(f"{seed} {name}"), name)
            group.create_task(customer.live(expected.goes_on))
        for number in range(2):
            caller = Caller(http, expected, f"bulk-{number}")
            group.create_task(grow_all(caller, Random(f"{seed} bulk {number}"), expected.goes_on))


def _mark(path: str) -> bytes:
    with Path(path).open("rb") as data:
        return data.read(MARK)
