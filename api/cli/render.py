"""Tables and texts of the client commands."""

import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.client import JsonObject
from domain.printable import printable

#: Width of output that is not a terminal: ids must not be truncated.
_WIDTH: Final = 200
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


def open_console() -> Console:
    """Open standard output for text from the API: no markup, no highlighting, no emoji codes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that cannot be encoded must not end a watch
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def printable_object(one: JsonObject) -> JsonObject:
    """Return an object of the API for a terminal: the control characters in all of its texts are escaped."""
    shown: JsonObject = _printable_value(one)
    return shown


def _printable_value(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case list():
            return [*map(_printable_value, value)]
        case dict():  # an `ApiObject` remains one
            return type(value)({printable(name): _printable_value(member) for name, member in value.items()})
        case _:
            return value


def jobs_table(jobs: Sequence[JsonObject]) -> Table:
    """Return a table with one row per job."""
    table = _table("id", "kind", "status", "progress", "attempt", "created (UTC)", "finished (UTC)")
    for job in jobs:
        times = (_time_text(job["created_at"]), _time_text(job["finished_at"]))
        status = _styled_status(job["status"])
        table.add_row(job["id"], job["kind"], status, progress_text(job), str(job["attempt"]), *times)
    return table


def schedules_table(schedules: Sequence[JsonObject]) -> Table:
    """Return a table with one row per schedule."""
    table = _table("name", "cron", "time zone", "action", "next run (UTC)", "last run (UTC)", "outcome")
    for schedule in schedules:
        row = [schedule[member] for member in ("name", "cron", "time_zone", "action")]
        row.append(_time_text(schedule["next_run_at"]) if schedule["enabled"] else "paused")
        for run in schedule["last_runs"][:1]:
            row += [_time_text(run["scheduled_for"]), _styled_status(run["job_status"] or run["outcome"])]
        table.add_row(*row)
    return table


def audit_table(entries: Sequence[JsonObject]) -> Table:
    """Return a table with one row per entry of the audit log."""
    table = _table("time (UTC)", "name", "action", "subject", "job", "from")
    for entry in entries:
        subject = entry["subject_name"] or entry["subject_id"]
        table.add_row(
            _time_text(entry["created_at"]), entry["name"], entry["action"], subject, entry["job_id"], entry["peer"]
        )
    return table


def keys_table(keys: Sequence[JsonObject]) -> Table:
    """Return a table with one row per key."""
    table = _table("id", "name", "role", "project", "created (UTC)", "last used (UTC)", "ends (UTC)", "")
    for key in keys:
        times = [_time_text(key[member]) for member in ("created_at", "last_used_at", "expires_at")]
        state = "revoked" if key["revoked_at"] else ""
        table.add_row(key["id"], key["name"], key["role"], key["project_id"], *times, state)
    return table


def projects_table(projects: Sequence[JsonObject]) -> Table:
    """Return a table with one row per project: what it has, of how much."""
    names = ("volumes", "bytes", "snapshots", "queued_jobs")
    table = _table("name", *(name.replace("_", " ") for name in names), "created (UTC)")
    for project in projects:
        numbers = (_of(project["usage"][name], project[f"max_{name}"]) for name in names)
        table.add_row(project["name"], *numbers, _time_text(project["created_at"]))
    return table


def _of(number: int, limit: int | None) -> str:
    return f"{number:,}" if limit is None else f"{number:,} of {limit:,}"


def job_table(jobs: Sequence[JsonObject]) -> Table:
    """Return a table with one row per member of a single job; empty members are left out."""
    (job,) = jobs
    table = Table(show_header=False, box=None)
    members = job | {"progress": progress_text(job), "error": error_text(job)}
    for name, value in members.items():
        if value not in (None, "", {}):
            text = value if isinstance(value, str) else json.dumps(value)
            table.add_row(name, _styled_status(text) if name == "status" else text)
    return table


def items_table(items: Sequence[JsonObject]) -> Table:
    """Return a table with one row per item of a bulk job."""
    table = _table("volume", "status", "code", "detail")
    for item in items:
        table.add_row(item["volume_id"], _styled_status(item["status"]), item["code"], item["detail"])
    return table


def progress_text(job: JsonObject) -> str:
    """Return the progress of a job; empty if it is unknown."""
    progress = job["progress"]
    if progress is None:
        return ""
    if progress["unit"] == "bytes":
        return f"{progress['succeeded']:,} of {progress['total']:,} bytes"
    ended = f"{completed_count(job)} of {progress['total']} volumes"
    rest = ", ".join(f"{progress[name]} {name}" for name in ("failed", "skipped") if progress[name])
    return f"{ended} ({rest})" if rest else ended


def completed_count(job: JsonObject) -> int:
    """Return how many volumes or bytes of a job are completed."""
    progress = job["progress"] or {}
    return sum(progress.get(name, 0) for name in ("succeeded", "failed", "skipped"))


def error_text(job: JsonObject) -> str:
    """Return the error of a job; empty if there is none."""
    error = job["error"]
    return "" if error is None else f"{error['code']}: {error['detail']}"


def _styled_status(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, _STYLES.get(status, ""))


def _time_text(timestamp: str | None) -> str:
    """Return a timestamp without fractions of a second; empty if there is none."""
    return "" if timestamp is None else timestamp[:19].replace("T", " ")


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in {"id", "volume", "name"})
    return table
