"""The command ``cistern demo``: create, snapshot, expand and restore volumes on a temporary stack, over HTTP.

What the API reports is compared with the files on disk. Where the machine can mount a volume, one is used meanwhile.
"""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.cli.demo_api import DemoApi, DemoFailed, Job, require_success
from api.cli.demo_host import clear, obstacle
from api.cli.demo_in_use import VolumeInUse
from api.cli.key_file import read_key_file
from api.cli.processes import Child
from api.cli.stack import NODE, Stack, free_port, run
from domain.embedded import temporary_data_dir
from domain.errors import CisternError
from domain.jobs.states import ENDED
from domain.settings import load_settings

_MIB: Final = 2**20
_INITIAL_SIZE: Final = 10 * _MIB
_EXPANDED_SIZE: Final = 25 * _MIB
_WRITTEN_BYTES: Final = _MIB
_MAX_REQUESTS: Final = 32
_TIMEOUT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.1
_MAX_LOG_LINES: Final = 15


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
        missing = obstacle(data_dir)
        variables = {"CISTERN_NODE": NODE, "CISTERN_NODE_DIR": str(data_dir.resolve() / "mounts")}
        stack = Stack(
            settings=settings, port=free_port(), workers=workers, has_node=missing is None, variables=variables
        )
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
        finally:
            if missing is None:
                clear(data_dir)
    if not completed:
        raise DemoFailed("the demo was stopped before its end")
    print_report(console, scenario.steps, volumes=volumes)
    console.print(scenario.in_use or f"Not shown, for it needs {missing}: a volume that is used while it grows.")


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
        #: What became of the volume in use; empty if there was none.
        self.in_use = ""

    async def run(self, processes: Mapping[str, Child]) -> None:
        """Run all steps.

        Raises:
            DemoFailed: a job or a file is not as expected.
        """
        columns = (TextColumn("{task.description:<12}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        self._api = DemoApi(self._stack.url, read_key_file(self._stack.settings.data_dir) or "")
        with Progress(*columns, console=self._console) as self._bars:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self._run_steps()
        if self._stack.has_node:
            self._console.print("A process writes to a mounted volume ...")
            self.in_use = await VolumeInUse(self._api, processes, self._stack.settings.data_dir).run()

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
                job = await self._api.succeeded(await self._api.request("POST", path, body))
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
            job = await self._api.request("POST", "/volumes/expand", body, headers=at_once)
            expanded = 0
            while job["status"] not in ENDED or expanded < len(self._names):
                await asyncio.sleep(_POLL_SECONDS)
                job = await self._api.get(f"/jobs/{job['id']}", headers=at_once)
                succeeded = (job["progress"] or {}).get("succeeded", 0)
                advance(succeeded - expanded)
                expanded = succeeded
                require_success(job)
            lanes = await self._api.get("/jobs", params={"parent_id": job["id"]})
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
        volume = await self._api.get(f"/volumes/{volume_id}")
        path = Path(volume["path"])
        file_size = (await asyncio.to_thread(path.stat)).st_size
        if (volume["state"], volume["size"], file_size) != ("available", size, size):
            raise DemoFailed(
                f"{volume['name']} is {volume['state']} with {file_size} bytes on disk, not available with {size}"
            )
        return path

    @contextmanager
    def _step(self, title: str) -> Iterator[tuple[Step, Callable[..., None]]]:
        step = Step(title)
        self.steps.append(step)
        bar = self._bars.add_task(title, total=len(self._names))
        started = time.monotonic()
        yield step, lambda count=1: self._bars.advance(bar, count)
        step.seconds = time.monotonic() - started


def _content(seed: str) -> bytes:
    """Return _WRITTEN_BYTES pseudo-random bytes."""
    return hashlib.shake_128(seed.encode()).digest(_WRITTEN_BYTES)


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_WRITTEN_BYTES)
