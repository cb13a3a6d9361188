"""The commands ``cistern jobs ...``: list, show, watch, cancel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.cli.client import DEFAULT_URL, ApiClient, AsJson, JsonObject, Url, api_client
from api.cli.render import (
    completed_count,
    error_text,
    items_table,
    job_table,
    jobs_table,
    open_console,
    print_objects,
    progress_text,
)
from domain.jobs.states import ENDED, JobStatus

#: Maximum number of failed items shown for a bulk job.
_MAX_FAILED_ITEMS: Final = 20

JobId = Annotated[UUID, typer.Argument(metavar="ID")]

app = typer.Typer(help="List, show, watch and cancel jobs.", add_completion=False, no_args_is_help=True)


@app.command("list")
def list_jobs(
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as bulk.expand.")] = None,
    volume: Annotated[UUID | None, typer.Option(help="Only jobs of this volume.", metavar="ID")] = None,
    parent: Annotated[UUID | None, typer.Option(help="The lanes of this bulk job.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    options = {"status": status, "kind": kind, "volume_id": volume, "parent_id": parent}
    filters = {name: str(value) for name, value in options.items() if value is not None}
    with api_client(url) as client:
        print_objects(list(client.list_all("/jobs", limit, **filters)), jobs_table, as_json=as_json)


@app.command("show")
def show_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show a job; for a bulk job, also the volumes that failed."""
    with api_client(url) as client:
        job = client.get(f"/jobs/{job_id}")
        print_objects([job], lambda _: job_table(job), as_json=as_json)
        if not as_json and (job["progress"] or {}).get("failed"):
            failed = client.list_all(f"/jobs/{job_id}/items", _MAX_FAILED_ITEMS, status="failed")
            print_objects(list(failed), items_table, as_json=False)


@app.command("watch")
def watch_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Watch a job until it has ended. Exit status: 0 succeeded, 1 not succeeded, 2 the API call failed."""
    with api_client(url) as client:
        exit_with_status(watch(client, job_id, as_json=as_json))


@app.command("cancel")
def cancel_job(job_id: JobId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Cancel a job: a queued one ends at once, a running one as soon as it can be stopped."""
    with api_client(url) as client:
        job = client.post(f"/jobs/{job_id}/cancel")
    print_objects([job], jobs_table, as_json=as_json)


def watch(client: ApiClient, job_id: UUID, *, as_json: bool) -> JsonObject:
    """Print the progress of a job until it has ended, and return the ended job."""
    console = open_console()
    with _display(console, as_json=as_json) as update:
        for job in client.changes(f"/jobs/{job_id}"):
            update(job)
            if job["status"] in ENDED:
                break
    if not as_json and error_text(job):
        console.print(error_text(job))
    return job


def exit_with_status(job: JsonObject) -> None:
    """Exit with 0 if the job has succeeded, otherwise with 1."""
    raise typer.Exit(0 if job["status"] == JobStatus.SUCCEEDED else 1)


@contextmanager
def _display(console: Console, *, as_json: bool) -> Iterator[Callable[[JsonObject], None]]:
    """Yield a function that prints a changed job: JSON, a progress bar on a terminal, or a line elsewhere."""
    if as_json:
        yield lambda job: print_objects([job], jobs_table, as_json=True)
    elif console.is_terminal:
        with _bar(console) as update:
            yield update
    else:
        yield lambda job: console.print(*filter(None, (job["id"], job["kind"], job["status"], progress_text(job))))


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[JsonObject], None]]:
    title = TextColumn("{task.description}", markup=False)
    counts = TextColumn("{task.fields[counts]}", markup=False)
    with Progress(SpinnerColumn(), title, BarColumn(40), counts, TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task("", total=None, counts="")

        def update(job: JsonObject) -> None:
            bars.update(
                bar,
                description=f"{job['kind']} {job['status']}",
                total=(job["progress"] or {}).get("total"),
                completed=completed_count(job),
                counts=progress_text(job),
            )

        yield update
