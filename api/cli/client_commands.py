"""The commands ``cistern jobs ...``, ``cistern schedules ...`` and ``cistern audit``: clients of the HTTP API."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn
from uuid import UUID

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.cli.client import ApiCallFailed, ApiClient, JsonObject, api_client
from api.cli.render import (
    audit_table,
    completed_count,
    error_text,
    items_table,
    job_table,
    jobs_table,
    open_console,
    printable_object,
    progress_text,
    schedules_table,
)
from domain.jobs.states import ENDED, JobStatus

#: Maximum number of failed items shown for a bulk job.
_MAX_FAILED_ITEMS: Final = 20

JobId = Annotated[UUID, typer.Argument(metavar="ID")]
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the schedule.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, as the API returns it.")]
Url = Annotated[str, typer.Option(envvar="CISTERN_URL", help="URL of the API.")]

jobs = typer.Typer(help="List, show, watch and cancel jobs.", add_completion=False, no_args_is_help=True)
audit = typer.Typer(add_completion=False)
schedules = typer.Typer(help="List, run, pause and resume schedules.", add_completion=False, no_args_is_help=True)


@dataclass(frozen=True)
class Session:
    """One run of a command: the API that it calls, and how it prints the objects."""

    api: ApiClient
    as_json: bool

    def print(self, objects: Sequence[JsonObject], table: Callable[[Sequence[JsonObject]], Table]) -> None:
        """Print objects as a table, or as one line of JSON each."""
        if self.as_json:
            for one in objects:
                typer.echo(json.dumps(one))
        else:
            open_console().print(table([*map(printable_object, objects)]))


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], None]:
    """Register a function as a command that has also --json and --url; its first argument is their `Session`."""

    def register(function: Callable[..., None]) -> None:
        def run(*, as_json: AsJson = False, url: Url = "http://127.0.0.1:8000", **arguments: Any) -> None:
            with api_client(url) as api:
                function(Session(api, as_json), **arguments)

        _, *parameters = inspect.signature(function).parameters.values()
        as_json, url, _ = inspect.signature(run).parameters.values()
        run.__signature__ = inspect.Signature([*parameters, as_json, url])  # type: ignore[attr-defined]
        group.command(name, help=function.__doc__)(run)

    return register


@command(jobs, "list")
def list_jobs(
    session: Session,
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as bulk.expand.")] = None,
    volume: Annotated[UUID | None, typer.Option(help="Only jobs of this volume.", metavar="ID")] = None,
    parent: Annotated[UUID | None, typer.Option(help="The lanes of this bulk job.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    """List jobs, newest first."""
    options = {"status": status, "kind": kind, "volume_id": volume, "parent_id": parent}
    filters = {name: str(value) for name, value in options.items() if value is not None}
    session.print(list(session.api.list_all("/jobs", limit, **filters)), jobs_table)


@command(jobs, "show")
def show_job(session: Session, job_id: JobId) -> None:
    """Show a job; for a bulk job, also the volumes that failed."""
    job = session.api.get(f"/jobs/{job_id}")
    session.print([job], job_table)
    if not session.as_json and (job["progress"] or {}).get("failed"):
        failed = session.api.list_all(f"/jobs/{job_id}/items", _MAX_FAILED_ITEMS, status="failed")
        session.print(list(failed), items_table)


@command(jobs, "watch")
def watch_job(session: Session, job_id: JobId) -> None:
    """Watch a job until it has ended. Exit status: 0 succeeded, 1 not succeeded, 2 the API call failed."""
    _watch(session, str(job_id))


@command(jobs, "cancel")
def cancel_job(session: Session, job_id: JobId) -> None:
    """Cancel a job: a queued one ends at once, a running one as soon as it can be stopped."""
    session.print([session.api.call("POST", f"/jobs/{job_id}/cancel")], jobs_table)


@command(schedules, "list")
def list_schedules(
    session: Session, *, limit: Annotated[int, typer.Option(min=1, help="Maximum number of schedules.")] = 100
) -> None:
    """List schedules with their next time and the outcome of their last run."""
    session.print(list(session.api.list_all("/schedules", limit)), schedules_table)


@command(schedules, "run")
def run_schedule(
    session: Session,
    name: NameOrId,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Watch the job until it has ended.")] = False,
) -> None:
    """Run a schedule now, in addition to its times; fails while a run of it is active."""
    job = session.api.call("POST", f"{_schedule_path(session, name)}/run")
    if watch:
        _watch(session, job["id"])
    session.print([job], jobs_table)


@command(schedules, "pause")
def pause_schedule(session: Session, name: NameOrId) -> None:
    """Pause a schedule; an active run continues."""
    _enable(session, name, enabled=False)


@command(schedules, "resume")
def resume_schedule(session: Session, name: NameOrId) -> None:
    """Resume a paused schedule, starting with its next time."""
    _enable(session, name, enabled=True)


def _enable(session: Session, name: str, *, enabled: bool) -> None:
    schedule = session.api.call("PATCH", _schedule_path(session, name), json={"enabled": enabled})
    session.print([schedule], schedules_table)


def _schedule_path(session: Session, name: str) -> str:
    """Look up a schedule by its name or id, and return its path.

    Raises:
        ApiCallFailed: no schedule has this name or id.
    """
    try:
        schedule_id = UUID(name)
    except ValueError:
        items = session.api.get("/schedules", name=name)["items"]
        if not items:
            raise ApiCallFailed(f"there is no schedule named {name!r}") from None
        return f"/schedules/{items[0]['id']}"
    return f"/schedules/{session.api.get(f'/schedules/{schedule_id}')['id']}"


def _watch(session: Session, job_id: str) -> NoReturn:
    """Print the progress of a job until it has ended, and exit with 0 if it has succeeded, otherwise with 1."""
    with _display(session) as update:
        for answer in session.api.changes(f"/jobs/{job_id}"):
            job = answer if session.as_json else printable_object(answer)
            update(job)
            if job["status"] in ENDED:
                break
    if not session.as_json and error_text(job):
        open_console().print(error_text(job))
    raise typer.Exit(0 if job["status"] == JobStatus.SUCCEEDED else 1)


@contextmanager
def _display(session: Session) -> Iterator[Callable[[JsonObject], None]]:
    """Yield a function that prints a changed job: JSON, a progress bar on a terminal, or a line elsewhere."""
    console = open_console()
    if session.as_json:
        yield lambda job: session.print([job], jobs_table)
        return
    if not console.is_terminal:
        yield lambda job: console.print(*filter(None, (job["id"], job["kind"], job["status"], progress_text(job))))
        return
    title = TextColumn("{task.description}", markup=False)
    counts = TextColumn("{task.fields[counts]}", markup=False)
    with Progress(SpinnerColumn(), title, BarColumn(40), counts, TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task("", total=None, counts="")
        yield lambda job: bars.update(
            bar,
            description=f"{job['kind']} {job['status']}",
            total=(job["progress"] or {}).get("total"),
            completed=completed_count(job),
            counts=progress_text(job),
        )


@command(audit, "audit")
def list_audit(
    session: Session,
    *,
    name: Annotated[str | None, typer.Option(help="Only what the keys of this name have done.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as volume.delete.")] = None,
    subject: Annotated[
        UUID | None, typer.Option(help="Only what was done to this volume, snapshot, schedule or key.", metavar="ID")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of entries.")] = 50,
) -> None:
    """List accepted changes, newest first: who asked for what, and from where. Needs a system key."""
    filters = {"name": name, "action": action, "subject_id": subject}
    given = {parameter: str(value) for parameter, value in filters.items() if value is not None}
    session.print(list(session.api.list_all("/audit", limit, **given)), audit_table)
