"""What the command line shows of jobs and schedules: tables for people."""

import json
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.client import Thing

#: Where nobody says how wide a line may be, ids must not be cut off.
_WIDE: Final = 200
_STYLES: Final = {
    "succeeded": "green",
    "started": "green",
    "partial": "yellow",
    "skipped": "yellow",
    "running": "cyan",
    "failed": "red",
    "missed": "red",
    "cancelled": "magenta",
}


def a_console() -> Console:
    """Open standard output for what comes from the API, in which nothing is markup."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that cannot be shown must not end a watch
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def show(things: Sequence[Thing], table: Callable[[Sequence[Thing]], Table], *, as_json: bool) -> None:
    """Print things as a table, or each as a line of JSON."""
    if as_json:
        for thing in things:
            typer.echo(json.dumps(thing))
    else:
        a_console().print(table(things))


def jobs_table(jobs: Sequence[Thing]) -> Table:
    """Show one job per row."""
    table = _table("id", "kind", "status", "progress", "attempt", "created (UTC)", "finished (UTC)")
    for job in jobs:
        times = (when(job["created_at"]), when(job["finished_at"]))
        table.add_row(job["id"], job["kind"], status(job["status"]), counts(job), str(job["attempt"]), *times)
    return table


def schedules_table(schedules: Sequence[Thing]) -> Table:
    """Show one schedule per row."""
    table = _table("name", "cron", "time zone", "action", "next run (UTC)", "last run (UTC)", "became of it")
    for schedule in schedules:
        due = when(schedule["next_run_at"]) if schedule["enabled"] else "paused"
        last = next(iter(schedule["last_runs"]), None)
        ran = ("", "") if last is None else (when(last["scheduled_for"]), _outcome(last))
        table.add_row(schedule["name"], schedule["cron"], schedule["time_zone"], schedule["action"], due, *ran)
    return table


def facts_table(job: Thing) -> Table:
    """Show one job, a fact per row; what there is none of is left out."""
    table = Table(show_header=False, box=None)
    facts = job | {"progress": counts(job), "error": failure(job)}
    for name, value in facts.items():
        if value not in (None, "", {}):
            table.add_row(name, status(value) if name == "status" else _plain(value))
    return table


def items_table(items: Sequence[Thing]) -> Table:
    """Show what became of volumes in a bulk job, one per row."""
    table = _table("volume", "status", "code", "detail")
    for item in items:
        table.add_row(item["volume_id"], status(item["status"]), item["code"], item["detail"])
    return table


def counts(job: Thing) -> str:
    """Say how far a job has come, as far as that is known."""
    progress = job["progress"]
    if progress is None:
        return ""
    if progress["unit"] == "bytes":
        return f"{progress['succeeded']:,} of {progress['total']:,} bytes"
    ended = f"{done(job)} of {progress['total']} volumes"
    rest = ", ".join(f"{progress[name]} {name}" for name in ("failed", "skipped") if progress[name])
    return f"{ended} ({rest})" if rest else ended


def done(job: Thing) -> int:
    """Count what a job is through with."""
    progress = job["progress"] or {}
    return sum(progress.get(name, 0) for name in ("succeeded", "failed", "skipped"))


def failure(job: Thing) -> str:
    """Say why a job failed, or why it is tried again."""
    error = job["error"]
    return "" if error is None else f"{error['code']}: {error['detail']}"


def status(word: str) -> Text:
    """Give a status its colour."""
    return Text(word, _STYLES.get(word, ""))


def when(moment: str | None) -> str:
    """Shorten a time to the second."""
    return "" if moment is None else moment[:19].replace("T", " ")


def _outcome(run: Thing) -> Text:
    return status(run["job_status"] or run["outcome"])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in {"id", "volume", "name"})
    return table
