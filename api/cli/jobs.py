"""`cistern jobs ...`: look at jobs, watch them, end them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.cli.client import DEFAULT_URL, ApiClient, AsJson, Thing, Url, api_client
from api.cli.render import a_console, counts, done, facts_table, failure, items_table, jobs_table, show
from domain.jobs.states import ENDED, JobStatus

#: Of a bulk job's failures as many are shown.
_MAX_FAILED_SHOWN: Final = 20

JobId = Annotated[UUID, typer.Argument(metavar="ID")]

jobs = typer.Typer(help="Look at jobs, watch them, end them.", no_args_is_help=True)


@jobs.command("list")
def list_jobs(
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind, such as bulk.expand.")] = None,
    volume: Annotated[UUID | None, typer.Option(help="Only those of this volume.", metavar="ID")] = None,
    parent: Annotated[UUID | None, typer.Option(help="The lanes of this bulk job.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    given = {"status": status, "kind": kind, "volume_id": volume, "parent_id": parent}
    wanted = {name: str(value) for name, value in given.items() if value is not None}
    with api_client(url) as calls:
        show(list(calls.listed("/jobs", limit, **wanted)), jobs_table, as_json=as_json)


@jobs.command("show")
def show_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show a job, and of a bulk job which volumes failed."""
    with api_client(url) as calls:
        job = calls.get(f"/jobs/{job_id}")
        show([job], lambda _: facts_table(job), as_json=as_json)
        if not as_json and (job["progress"] or {}).get("failed"):
            show(
                list(calls.listed(f"/jobs/{job_id}/items", _MAX_FAILED_SHOWN, status="failed")),
                items_table,
                as_json=False,
            )


@jobs.command("watch")
def watch_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Watch a job until it has ended: exit code 0 if it succeeded, 1 if not, 2 if the API cannot tell."""
    with api_client(url) as calls:
        exit_with(watch(calls, job_id, as_json=as_json))


@jobs.command("cancel")
def cancel_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Ask for a job's end: one that never began ends at once, one at work as soon as it can be left."""
    with api_client(url) as calls:
        job = calls.post(f"/jobs/{job_id}/cancel")
    show([job], jobs_table, as_json=as_json)


def watch(calls: ApiClient, job_id: UUID, *, as_json: bool) -> Thing:
    """Show how a job comes along; returns it when it has ended."""
    console = a_console()
    with _display(console, as_json=as_json) as tell:
        for job in calls.changes(f"/jobs/{job_id}"):
            tell(job)
            if job["status"] in ENDED:
                break
    if not as_json and failure(job):
        console.print(failure(job))
    return job


def exit_with(job: Thing) -> None:
    """End the command as the job has ended."""
    raise typer.Exit(0 if job["status"] == JobStatus.SUCCEEDED else 1)


@contextmanager
def _display(console: Console, *, as_json: bool) -> Iterator[Callable[[Thing], None]]:
    """What shows a job each time that it has changed: a bar at a terminal, lines elsewhere."""
    if as_json:
        yield lambda job: show([job], jobs_table, as_json=True)
    elif console.is_terminal:
        with _bar(console) as tell:
            yield tell
    else:
        yield lambda job: console.print(*filter(None, (job["id"], job["kind"], job["status"], counts(job))))


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Thing], None]]:
    said = TextColumn("{task.description}", markup=False)
    came = TextColumn("{task.fields[counts]}", markup=False)
    with Progress(SpinnerColumn(), said, BarColumn(40), came, TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task("", total=None, counts="")

        def tell(job: Thing) -> None:
            total = (job["progress"] or {}).get("total")
            words = f"{job['kind']} {job['status']}"
            bars.update(bar, description=words, total=total, completed=done(job), counts=counts(job))

        yield tell
