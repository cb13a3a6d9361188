"""What the client commands show of each kind of object. Knows nothing of terminals: `api.cli.render` prints it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from api.cli.client import JsonObject
from api.cli.sizes import size_text

#: A title, and the text of an object under it.
Column = tuple[str, Callable[[JsonObject], str]]
Columns = Sequence[Column]

#: The title of the column with the name of the object's volume, which is looked up if it is not in the object.
VOLUME: Final = "volume"

#: Rates from here on are shown without decimals.
_WHOLE_RATE: Final = 10


def _member(name: str) -> Callable[[JsonObject], str]:
    """Return the text of a member; empty if it is null."""
    return lambda one: "" if one[name] is None else str(one[name])


def _time(name: str) -> Callable[[JsonObject], str]:
    return lambda one: time_text(one[name])


def _size(name: str) -> Callable[[JsonObject], str]:
    return lambda one: size_text(one[name])


def time_text(timestamp: str | None) -> str:
    """Return a timestamp without fractions of a second; empty if there is none."""
    return "" if timestamp is None else timestamp[:19].replace("T", " ")


def progress_text(job: JsonObject) -> str:
    """Return the progress of a job; empty if it is unknown."""
    progress = job["progress"]
    if progress is None:
        return ""
    if progress["unit"] == "bytes":
        return f"{size_text(progress['succeeded'])} of {size_text(progress['total'])}"
    ended = f"{completed_count(job)} of {progress['total']} volumes"
    rest = ", ".join(f"{progress[name]} {name}" for name in ("failed", "skipped") if progress[name])
    return f"{ended} ({rest})" if rest else ended


def completed_count(job: JsonObject) -> int:
    """Return how many volumes or bytes of a job are completed."""
    progress = job["progress"] or {}
    return sum(progress.get(name, 0) for name in ("succeeded", "failed", "skipped"))


def rate_text(job: JsonObject) -> str:
    """Return the average rate of a job; empty if nothing is done yet."""
    rate = (job["progress"] or {}).get("per_second")
    if rate is None:
        return ""
    if job["progress"]["unit"] == "bytes":
        return f"{size_text(int(rate))}/s"
    return f"{rate:,.0f}/s" if rate >= _WHOLE_RATE else f"{rate:.2g}/s"


def estimated_end(job: JsonObject) -> datetime | None:
    """Return when a job is expected to end; None if that is unknown, or it has ended."""
    end = (job["progress"] or {}).get("estimated_end")
    return None if end is None else datetime.fromisoformat(end)


def error_text(job: JsonObject) -> str:
    """Return the error of a job; empty if there is none."""
    error = job["error"]
    return "" if error is None else f"{error['code']}: {error['detail']}"


def used_text(volume: JsonObject) -> str:
    """Return how much of a volume is in use; empty if that is unknown."""
    used, size = volume["used"], volume["size"]
    return "" if used is None else f"{size_text(used)} ({used * 100 // size if size else 0} %)"


def _labels(volume: JsonObject) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(volume["labels"].items()))


def _of(number: int, limit: int | None, render: Callable[[int], str]) -> str:
    return render(number) if limit is None else f"{render(number)} of {render(limit)}"


def _used_of_limit(name: str) -> Callable[[JsonObject], str]:
    render: Callable[[int], str] = size_text if name == "bytes" else lambda number: f"{number:,}"
    return lambda project: _of(project["usage"][name], project[f"max_{name}"], render)


def _next_run(schedule: JsonObject) -> str:
    return time_text(schedule["next_run_at"]) if schedule["enabled"] else "paused"


def _last_run(render: Callable[[JsonObject], str]) -> Callable[[JsonObject], str]:
    return lambda schedule: next((render(run) for run in schedule["last_runs"][:1]), "")


def _servers(backend: JsonObject) -> str:
    return " ".join(sorted({worker["host"] for worker in backend["workers"] if worker["problem"] is None}))


def _running(worker: JsonObject) -> str:
    return ", ".join(f"{job['kind']} {job['id']}" for job in worker["jobs"])


def _busy(worker: JsonObject) -> str:
    slots: Any = worker["slots"]
    return f"{len(worker['jobs'])} of {slots}" if slots is not None else str(len(worker["jobs"]))


VOLUMES: Final[Columns] = (
    ("name", _member("name")),
    ("state", _member("state")),
    ("size", _size("size")),
    ("used", used_text),
    ("filesystem", _member("filesystem")),
    ("backend", _member("backend")),
    ("labels", _labels),
    ("id", _member("id")),
)
SNAPSHOTS: Final[Columns] = (
    (VOLUME, _member(VOLUME)),
    ("name", _member("name")),
    ("state", _member("state")),
    ("size", _size("size")),
    ("created (UTC)", _time("created_at")),
    ("id", _member("id")),
)
JOBS: Final[Columns] = (
    ("id", _member("id")),
    ("kind", _member("kind")),
    ("status", _member("status")),
    ("progress", progress_text),
    (VOLUME, _member(VOLUME)),
    ("attempt", _member("attempt")),
    ("created (UTC)", _time("created_at")),
    ("finished (UTC)", _time("finished_at")),
)
ITEMS: Final[Columns] = (
    (VOLUME, _member(VOLUME)),
    ("status", _member("status")),
    ("code", _member("code")),
    ("detail", _member("detail")),
)
PLAN: Final[Columns] = (
    ("name", _member("name")),
    ("from", _size("from_size")),
    ("to", _size("to_size")),
    ("used", lambda one: size_text(one["used"])),
    ("code", _member("code")),
    ("detail", _member("detail")),
)
SCHEDULES: Final[Columns] = (
    *((name, _member(name)) for name in ("name", "cron")),
    ("time zone", _member("time_zone")),
    ("action", _member("action")),
    ("next run (UTC)", _next_run),
    ("last run (UTC)", _last_run(_time("scheduled_for"))),
    ("outcome", _last_run(lambda run: run["job_status"] or run["outcome"])),
)
BACKENDS: Final[Columns] = (
    ("name", _member("name")),
    ("driver", _member("driver")),
    ("total", _size("total")),
    ("used", _size("used")),
    ("free", _size("free")),
    ("promised", _size("promised")),
    ("served by", _servers),
    ("problem", _member("problem")),
)
WORKERS: Final[Columns] = (
    ("host", _member("host")),
    ("pid", _member("pid")),
    ("state", lambda worker: "alive" if worker["alive"] else "silent"),
    ("since (UTC)", _time("started_at")),
    ("heartbeat (UTC)", _time("heartbeat_at")),
    ("slots", _busy),
    ("backends", lambda worker: " ".join(worker["backends"])),
    ("runs", _running),
    ("id", _member("id")),
)
ATTACHMENTS: Final[Columns] = (
    (VOLUME, _member("volume_name")),
    *((name, _member(name)) for name in ("node", "holder", "mode", "path", "state", "device")),
    ("since (UTC)", _time("created_at")),
    ("id", _member("id")),
)
NODES: Final[Columns] = (
    ("name", _member("name")),
    ("host", _member("host")),
    ("state", lambda node: "alive" if node["is_alive"] else "silent"),
    ("seen (UTC)", _time("seen_at")),
    ("attachments", _member("attachments")),
)
AUDIT: Final[Columns] = (
    ("time (UTC)", _time("created_at")),
    ("name", _member("name")),
    ("action", _member("action")),
    ("subject", lambda entry: entry["subject_name"] or entry["subject_id"] or ""),
    ("job", _member("job_id")),
    ("from", _member("peer")),
)
KEYS: Final[Columns] = (
    *((name, _member(name)) for name in ("id", "name", "role")),
    ("project", _member("project_id")),
    ("created (UTC)", _time("created_at")),
    ("last used (UTC)", _time("last_used_at")),
    ("ends (UTC)", _time("expires_at")),
    ("", lambda key: "revoked" if key["revoked_at"] else ""),
)
PROJECTS: Final[Columns] = (
    ("name", _member("name")),
    *((name.replace("_", " "), _used_of_limit(name)) for name in ("volumes", "bytes", "snapshots", "queued_jobs")),
    ("created (UTC)", _time("created_at")),
)
CHECKS: Final[Columns] = (
    ("state", _member("state")),
    ("check", _member("check")),
    ("detail", _member("detail")),
    ("what to do", _member("remedy")),
)
