"""`cistern demo`: the main job for real, on a stack of its own that is gone afterwards; what it claims it looks up."""

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.up import Stack, run
from domain.embedded import temporary_data_dir
from domain.errors import CisternError
from domain.settings import load_settings

MIB = 2**20
BEFORE = 10 * MIB
AFTER = 25 * MIB
AT_ONCE = 32
LONGEST_SECONDS = 120.0
ENDED = frozenset({"succeeded", "partial", "failed", "cancelled"})

Job = dict[str, Any]


class DemoFailed(CisternError):
    """The demo did not show what it should."""

    code = "demo-failed"


@dataclass
class Phase:
    """One round of jobs, and what became of the files."""

    title: str
    jobs: list[Job] = field(default_factory=list)
    seconds: float = 0.0
    stored: int = 0


class Demo:
    """Creates volumes over HTTP, expands them all, and measures the files."""

    def __init__(self, url: str, *, volumes: int, console: Console) -> None:
        self._url = url
        self._names = [f"demo-{number:03}" for number in range(1, volumes + 1)]
        self._console = console
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.created = Phase("created")
        self.expanded = Phase("expanded")

    async def show(self) -> None:
        """Run both rounds behind progress bars.

        Raises:
            DemoFailed: a job or a file is not as it should be.
        """
        columns = (TextColumn("{task.description:<9}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            bars = [progress.add_task(phase.title, total=len(self._names)) for phase in (self.created, self.expanded)]
            async with asyncio.timeout(LONGEST_SECONDS), self._client() as client:
                bodies = [("/volumes", {"name": name, "size": BEFORE}) for name in self._names]
                await self._carry_out(client, self.created, bodies, progress, bars[0])
                paths = await self._measure(client, self.created, BEFORE)
                bodies = [(f"/volumes/{job['volume_id']}/expand", {"to": AFTER}) for job in self.created.jobs]
                await self._carry_out(client, self.expanded, bodies, progress, bars[1])
                if paths != await self._measure(client, self.expanded, AFTER):
                    raise DemoFailed("a volume has moved to another file")

    async def _carry_out(
        self,
        client: httpx.AsyncClient,
        phase: Phase,
        bodies: Sequence[tuple[str, dict[str, Any]]],
        progress: Progress,
        bar: TaskID,
    ) -> None:
        async def one(route: str, body: dict[str, Any]) -> None:
            async with self._slots:
                phase.jobs.append(await _finished(client, await _answer(client.post(route, json=body), 202)))
                progress.advance(bar)

        progress.reset(bar)
        began = time.monotonic()
        await asyncio.gather(*(one(route, body) for route, body in bodies))
        phase.seconds = time.monotonic() - began

    async def _measure(self, client: httpx.AsyncClient, phase: Phase, size: int) -> set[str]:
        """Look at every volume's row and file; the files' paths."""

        async def one(job: Job) -> str:
            async with self._slots:
                volume = await _answer(client.get(f"/volumes/{job['volume_id']}"), 200)
            found = (await asyncio.to_thread(Path(volume["path"]).stat)).st_size
            if (volume["state"], volume["size"], found) != ("available", size, size):
                wanted = f"available with {size} bytes"
                raise DemoFailed(f"{volume['name']} is {volume['state']} with {found} bytes on disk, not {wanted}")
            phase.stored += found
            return str(volume["path"])

        return set(await asyncio.gather(*(one(job) for job in phase.jobs)))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        url = f"{self._url}/api/v1"
        async with httpx.AsyncClient(
            base_url=url, headers={"Prefer": "wait=10"}, timeout=30, trust_env=False
        ) as client:
            yield client


def demo(*, volumes: int, workers: int) -> None:
    """Show it on a fresh stack; leaves nothing behind.

    Raises:
        DemoFailed: saying what was not as it should be.
    """
    console = Console()
    lines: deque[str] = deque(maxlen=15)
    console.print(f"Starting PostgreSQL, Redis, the API and {workers} workers ...")
    with temporary_data_dir() as data_dir:
        settings = load_settings(data_dir=data_dir, database_url="", redis_url="", backends={})
        stack = Stack(settings=settings, port=free_port(), workers=workers)
        shown = Demo(stack.url, volumes=volumes, console=console)
        try:
            whole = run(stack, shown.show, output=lambda name, line: lines.append(f"{name} | {line}"))
        except (CisternError, httpx.HTTPError, OSError, KeyError) as error:
            for line in lines:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            raise _in_one_line(error) from error
    if not whole:
        raise DemoFailed("the demo was stopped before its end")
    report(console, [shown.created, shown.expanded])


def report(console: Console, phases: Sequence[Phase]) -> None:
    """Print what was done, how fast, and by whom."""
    table = Table(
        "", "volumes", "size of files", "seconds", "jobs/s", "jobs by worker", title="Every file was measured"
    )
    for phase in phases:
        shares = Counter(str(job.get("worker_id") or "?")[-6:] for job in phase.jobs)
        by_worker = "\n".join(f"{worker}: {count}" for worker, count in sorted(shares.items()))
        stored = f"{phase.stored / MIB:,.0f} MiB"
        speed = f"{len(phase.jobs) / phase.seconds:,.0f}"
        table.add_row(phase.title, str(len(phase.jobs)), stored, f"{phase.seconds:.2f}", speed, by_worker)
    console.print(table)


def _in_one_line(error: Exception) -> CisternError:
    if isinstance(error, CisternError):
        return error
    if isinstance(error, TimeoutError):
        return DemoFailed(f"the jobs did not end within {LONGEST_SECONDS:g} s")
    return DemoFailed(f"{type(error).__name__}: {error}")


async def _finished(client: httpx.AsyncClient, job: Job) -> Job:
    while job["status"] not in ENDED:
        job = await _answer(client.get(f"/jobs/{job['id']}"), 200)
    if job["status"] != "succeeded":
        raise DemoFailed(f"job {job['id']} ({job.get('kind')}) {job['status']}: {job.get('error')}")
    return job


async def _answer(request: Awaitable[httpx.Response], status: int) -> Job:
    response = await request
    if response.status_code != status:
        raise DemoFailed(f"{response.request.method} {response.url.path}: {response.status_code} {response.text[:300]}")
    found: Job = response.json()
    return found


def free_port() -> int:
    """Find a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
