"""The command ``cistern demo``: create, snapshot, expand and restore volumes on a temporary stack, over HTTP.

What the API reports is compared with the files on disk.
"""

import asyncio
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.cli.http import HttpClient, Response
from api.cli.key_file import read_key_file
from api.cli.stack import Stack, free_port, run
from domain.embedded import temporary_data_dir
from domain.errors import CisternError
from domain.jobs.states import ENDED
from domain.settings import load_settings
from domain.tasks import in_daemon_thread

_MIB: Final = 2**20
_INITIAL_SIZE: Final = 10 * _MIB
_EXPANDED_SIZE: Final = 25 * _MIB
_WRITTEN_BYTES: Final = _MIB
_MAX_REQUESTS: Final = 32
_TIMEOUT_SECONDS: Final = 120.0
_REQUEST_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
_MAX_LOG_LINES: Final = 15

Job = dict[str, Any]


class DemoFailed(CisternError):
    """The demo found a job or a file that is not as expected."""

    code = "demo-failed"


@dataclass
class Step:
    """One operation on all volumes: its jobs and its duration."""

    title: str
    jobs: list[Job] = field(default_factory=list)
    seconds: float = 0.0


def demo(*, volumes: int, workers: int) -> None:
    """Run the demo on a new stack, and remove everything afterwards.

    Raises:
        DemoFailed: a job or a file is not as expected, or a signal ended the demo.
    """
    console = Console()
    log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
    console.print(f"Starting PostgreSQL, Redis, the API and {workers} workers ...")
    with temporary_data_dir() as data_dir:
        settings = load_settings(data_dir=data_dir, database_url="", redis_url="", backends={})
        stack = Stack(settings=settings, port=free_port(), workers=workers)
        scenario = Scenario(stack, volumes=volumes, console=console)
        try:
            completed = run(stack, scenario.run, output=lambda name, line: log.append(f"{name} | {line}"))
        except (CisternError, OSError, KeyError) as error:
            for line in log:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if isinstance(error, CisternError):
                raise
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError):
                reason = f"the jobs did not end within {_TIMEOUT_SECONDS:g} s"
            raise DemoFailed(reason) from error
    if not completed:
        raise DemoFailed("the demo was stopped before its end")
    print_report(console, scenario.steps, volumes=volumes)


def print_report(console: Console, steps: Sequence[Step], *, volumes: int) -> None:
    """Print duration, rate and number of jobs per worker of each step."""
    table = Table("", "seconds", "volumes/s", "jobs by worker")
    for step in steps:
        shares = Counter(str(job.get("worker_id") or "?")[-6:] for job in step.jobs)
        by_worker = ", ".join(f"{worker}: {count}" for worker, count in sorted(shares.items()))
        table.add_row(step.title, f"{step.seconds:.2f}", f"{volumes / step.seconds:,.0f}", by_worker)
    console.print(table)
    console.print(
        f"{volumes} volumes, {volumes * _EXPANDED_SIZE // _MIB:,} MiB: every file has its size, and every byte that "
        "was written is back after the restore."
    )


class Scenario:
    """Creates volumes, writes, snapshots, overwrites, expands them all at once, restores, and compares the bytes."""

    def __init__(self, stack: Stack, *, volumes: int, console: Console) -> None:
        self._stack = stack
        self._names = [f"demo-{number:03}" for number in range(1, volumes + 1)]
        self._console = console
        self._slots = asyncio.Semaphore(_MAX_REQUESTS)
        self.steps: list[Step] = []

    async def run(self) -> None:
        """Run all steps.

        Raises:
            DemoFailed: a job or a file is not as expected.
        """
        columns = (TextColumn("{task.description:<12}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        headers = {"Prefer": "wait=10", "Authorization": f"Bearer {read_key_file(self._stack.settings.data_dir)}"}
        self._http = HttpClient(f"{self._stack.url}/api/v1", headers, timeout=_REQUEST_SECONDS)
        with Progress(*columns, console=self._console) as self._bars:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self._run_steps()

    async def _run_steps(self) -> None:
        posts = [("/volumes", {"name": name, "size": _INITIAL_SIZE}) for name in self._names]
        volumes = [job["volume_id"] for job in await self._run_jobs("created", posts)]
        paths = {volume_id: await self._checked_path(volume_id, _INITIAL_SIZE) for volume_id in volumes}
        await self._write("written", paths, "first")
        posts = [(f"/volumes/{volume_id}/snapshots", {"name": "first"}) for volume_id in volumes]
        snapshots = [job["snapshot_id"] for job in await self._run_jobs("snapshots", posts)]
        await self._write("overwritten", paths, "second")
        await self._expand_all()
        await self._compare(paths, "second")
        await self._run_jobs("restored", [(f"/snapshots/{snapshot_id}/restore", None) for snapshot_id in snapshots])
        await self._compare(paths, "first")

    async def _run_jobs(self, title: str, posts: Iterable[tuple[str, Any]]) -> list[Job]:
        """Post all requests, at most _MAX_REQUESTS at once, and wait for their jobs."""

        async def run_job(path: str, body: Any) -> Job:
            async with self._slots:
                job = await self._post(path, body)
                while job["status"] not in ENDED:
                    job = await self._get(f"/jobs/{job['id']}")
            _require_success(job)
            advance()
            return job

        with self._step(title) as (step, advance):
            step.jobs = await asyncio.gather(*(run_job(path, body) for path, body in posts))
        return step.jobs

    async def _expand_all(self) -> None:
        """Expand every volume by one bulk job, and follow its progress."""
        body = {"to": _EXPANDED_SIZE, "max_concurrent": 16}
        with self._step("expanded") as (step, advance):
            at_once = {"Prefer": "wait=0"}
            job = await self._post("/volumes/expand", body, headers=at_once)
            expanded = 0
            while job["status"] not in ENDED or expanded < len(self._names):
                await asyncio.sleep(_POLL_SECONDS)
                job = await self._get(f"/jobs/{job['id']}", headers=at_once)
                succeeded = (job["progress"] or {}).get("succeeded", 0)
                advance(succeeded - expanded)
                expanded = succeeded
                _require_success(job)
            lanes = await self._get("/jobs", params={"parent_id": job["id"]})
            step.jobs = [job, *lanes["items"]]

    async def _write(self, title: str, paths: dict[str, Path], seed: str) -> None:
        with self._step(title) as (_, advance):
            for volume_id, path in paths.items():
                await asyncio.to_thread(_overwrite, path, _content(seed + volume_id))
                advance()

    async def _compare(self, paths: dict[str, Path], seed: str) -> None:
        with self._step("compared") as (_, advance):
            for volume_id, path in paths.items():
                if await self._checked_path(volume_id, _EXPANDED_SIZE) != path:
                    raise DemoFailed(f"volume {volume_id} has moved to another file")
                if await asyncio.to_thread(_read, path) != _content(seed + volume_id):
                    raise DemoFailed(f"volume {volume_id} does not have the bytes that were written {seed}")
                advance()

    async def _checked_path(self, volume_id: str, size: int) -> Path:
        """Check state and size of a volume in the API and on disk, and return the path of its file."""
        volume = await self._get(f"/volumes/{volume_id}")
        path = Path(volume["path"])
        file_size = (await asyncio.to_thread(path.stat)).st_size
        if (volume["state"], volume["size"], file_size) != ("available", size, size):
            raise DemoFailed(
                f"{volume['name']} is {volume['state']} with {file_size} bytes on disk, not available with {size}"
            )
        return path

    async def _get(self, path: str, **options: Any) -> Job:
        return _object(await in_daemon_thread(partial(self._http.request, "GET", path, **options)), 200, path)

    async def _post(self, path: str, body: Any, **options: Any) -> Job:
        call = partial(self._http.request, "POST", path, body=body, **options)
        return _object(await in_daemon_thread(call), 202, path)

    @contextmanager
    def _step(self, title: str) -> Iterator[tuple[Step, Callable[..., None]]]:
        step = Step(title)
        self.steps.append(step)
        bar = self._bars.add_task(title, total=len(self._names))
        started = time.monotonic()
        yield step, lambda count=1: self._bars.advance(bar, count)
        step.seconds = time.monotonic() - started


def _require_success(job: Job) -> None:
    if job["status"] in ENDED and job["status"] != "succeeded":
        raise DemoFailed(f"job {job['id']} ({job.get('kind')}) {job['status']}: {job.get('error')}")


def _object(response: Response, status: int, path: str) -> Job:
    """Return the object in the response, which must have ``status``."""
    if response.status != status:
        raise DemoFailed(f"{path}: {response.status} {response.content[:300].decode(errors='replace')}")
    body: Job = json.loads(response.content)
    return body


def _content(seed: str) -> bytes:
    """Return _WRITTEN_BYTES pseudo-random bytes."""
    return hashlib.shake_128(seed.encode()).digest(_WRITTEN_BYTES)


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_WRITTEN_BYTES)
