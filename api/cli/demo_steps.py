"""What `cistern demo` shows: the acts, over HTTP, each behind a bar; what the API claims is looked up on the disk."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from domain.errors import CisternError
from domain.jobs.states import ENDED

MIB: Final = 2**20
BEFORE: Final = 10 * MIB
AFTER: Final = 25 * MIB
PING_KEY: Final = MIB
AT_ONCE: Final = 32
LONGEST_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.1

Job = dict[str, Any]


class DemoFailed(CisternError):
    """The demo did not show what it should."""

    code = "demo-failed"


@dataclass
class DemoStep:
    """One round of work on all volumes; ``jobs`` are what it took, ``seconds`` how long."""

    title: str
    jobs: list[Job] = field(default_factory=list)
    seconds: float = 0.0


class Demo:
    """Creates volumes, writes, snapshots, overwrites, expands them all at once, restores, and compares the bytes."""

    def __init__(self, url: str, *, volumes: int, console: Console) -> None:
        self._url = url
        self._names = [f"demo-{number:03}" for number in range(1, volumes + 1)]
        self._console = console
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.acts: list[DemoStep] = []

    async def run(self) -> None:
        """Play all acts.

        Raises:
            DemoFailed: a job or a file is not as it should be.
        """
        columns = (TextColumn("{task.description:<12}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as self._bars:
            async with asyncio.timeout(LONGEST_SECONDS), self._client() as self._http:
                await self._play()

    async def _play(self) -> None:
        posts = [("/volumes", {"name": name, "size": BEFORE}) for name in self._names]
        volumes = [job["volume_id"] for job in await self._jobs("created", posts)]
        paths = {volume_id: await self._file(volume_id, BEFORE) for volume_id in volumes}
        await self._write("written", paths, "first")
        posts = [(f"/volumes/{volume_id}/snapshots", {"name": "first"}) for volume_id in volumes]
        snapshots = [job["snapshot_id"] for job in await self._jobs("snapshots", posts)]
        await self._write("overwritten", paths, "second")
        await self._expand_all()
        await self._compare(paths, "second")
        await self._jobs("restored", [(f"/snapshots/{snapshot_id}/restore", None) for snapshot_id in snapshots])
        await self._compare(paths, "first")

    async def _jobs(self, title: str, posts: Iterable[tuple[str, Any]]) -> list[Job]:
        """Have one job each carried out, some at once."""

        async def one(route: str, body: Any) -> Job:
            async with self._slots:
                job = await self._ended(await _answer(self._http.post(route, json=body), 202))
            advance()
            return job

        with self._act(title) as (act, advance):
            act.jobs = await asyncio.gather(*(one(route, body) for route, body in posts))
        return act.jobs

    async def _expand_all(self) -> None:
        """Grow every volume by one job, and watch its counters."""
        wish = {"to": AFTER, "max_concurrent": 16}
        with self._act("expanded") as (act, advance):
            job = await _answer(self._http.post("/volumes/expand", json=wish, headers={"Prefer": "wait=0"}), 202)
            seen = 0
            while job["status"] not in ENDED or seen < len(self._names):
                await asyncio.sleep(_LOOK_SECONDS)
                job = await _answer(self._http.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=0"}), 200)
                done = (job["progress"] or {}).get("succeeded", 0)
                advance(done - seen)
                seen = done
                _require_success(job)
            lanes = await _answer(self._http.get("/jobs", params={"parent_id": job["id"]}), 200)
            act.jobs = [job, *lanes["items"]]

    async def _write(self, title: str, paths: dict[str, Path], seed: str) -> None:
        with self._act(title) as (_, advance):
            for volume_id, path in paths.items():
                await asyncio.to_thread(_overwrite, path, _bytes(seed + volume_id))
                advance()

    async def _compare(self, paths: dict[str, Path], seed: str) -> None:
        with self._act("compared") as (_, advance):
            for volume_id, path in paths.items():
                if await self._file(volume_id, AFTER) != path:
                    raise DemoFailed(f"volume {volume_id} has moved to another file")
                if await asyncio.to_thread(_beginning, path) != _bytes(seed + volume_id):
                    raise DemoFailed(f"volume {volume_id} does not have the bytes that were written {seed}")
                advance()

    async def _file(self, volume_id: str, size: int) -> Path:
        """Look at a volume's row and file; the file's path."""
        volume = await _answer(self._http.get(f"/volumes/{volume_id}"), 200)
        path = Path(volume["path"])
        found = (await asyncio.to_thread(path.stat)).st_size
        if (volume["state"], volume["size"], found) != ("available", size, size):
            raise DemoFailed(
                f"{volume['name']} is {volume['state']} with {found} bytes on disk, not available with {size}"
            )
        return path

    async def _ended(self, job: Job) -> Job:
        while job["status"] not in ENDED:
            job = await _answer(self._http.get(f"/jobs/{job['id']}"), 200)
        _require_success(job)
        return job

    @contextmanager
    def _act(self, title: str) -> Iterator[tuple[DemoStep, Callable[..., None]]]:
        act = DemoStep(title)
        self.acts.append(act)
        bar = self._bars.add_task(title, total=len(self._names))
        began = time.monotonic()
        yield act, lambda steps=1: self._bars.advance(bar, steps)
        act.seconds = time.monotonic() - began

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Prefer": "wait=10"}
        url = f"{self._url}/api/v1"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield client


def _require_success(job: Job) -> None:
    if job["status"] in ENDED and job["status"] != "succeeded":
        raise DemoFailed(f"job {job['id']} ({job.get('kind')}) {job['status']}: {job.get('error')}")


async def _answer(request: Awaitable[httpx.Response], status: int) -> Job:
    response = await request
    if response.status_code != status:
        raise DemoFailed(f"{response.request.method} {response.url.path}: {response.status_code} {response.text[:300]}")
    found: Job = response.json()
    return found


def _bytes(seed: str) -> bytes:
    """A mebibyte that no other seed gives."""
    return hashlib.shake_128(seed.encode()).digest(PING_KEY)


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(PING_KEY)
