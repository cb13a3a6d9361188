"""`cistern demo`: the main job for real, on a stack of its own that is gone afterwards."""

import socket
from collections import Counter, deque
from collections.abc import Sequence

import httpx
from rich.console import Console
from rich.table import Table

from api.cli.demo_steps import AFTER, LONGEST_SECONDS, MIB, Demo, DemoFailed, DemoStep
from api.cli.stack import Stack, run
from domain.embedded import temporary_data_dir
from domain.errors import CisternError
from domain.settings import load_settings


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
        show = Demo(stack.url, volumes=volumes, console=console)
        try:
            whole = run(stack, show.run, output=lambda name, line: lines.append(f"{name} | {line}"))
        except (CisternError, httpx.HTTPError, OSError, KeyError) as error:
            for line in lines:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            raise _in_one_line(error) from error
    if not whole:
        raise DemoFailed("the demo was stopped before its end")
    report(console, show.acts, volumes=volumes)


def report(console: Console, acts: Sequence[DemoStep], *, volumes: int) -> None:
    """Print what was done, how fast, and by whom."""
    table = Table("", "seconds", "volumes/s", "jobs by worker")
    for act in acts:
        shares = Counter(str(job.get("worker_id") or "?")[-6:] for job in act.jobs)
        by_worker = ", ".join(f"{worker}: {count}" for worker, count in sorted(shares.items()))
        table.add_row(act.title, f"{act.seconds:.2f}", f"{volumes / act.seconds:,.0f}", by_worker)
    console.print(table)
    console.print(
        f"{volumes} volumes, {volumes * AFTER // MIB:,} MiB: every size was measured, every byte that was "
        "written is back after its restore."
    )


def _in_one_line(error: Exception) -> CisternError:
    if isinstance(error, CisternError):
        return error
    if isinstance(error, TimeoutError):
        return DemoFailed(f"the jobs did not end within {LONGEST_SECONDS:g} s")
    return DemoFailed(f"{type(error).__name__}: {error}")


def free_port() -> int:
    """Find a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
