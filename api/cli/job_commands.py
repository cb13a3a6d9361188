"""The commands ``cistern jobs ...``: clients of the HTTP API."""

from typing import Annotated

import typer

from api.cli.columns import ITEMS, JOBS
from api.cli.lookup import JOB, VOLUME, find_id, path_of
from api.cli.session import Session, command, new_group
from api.cli.waiting import NoWait, failed_items, finish, watch
from domain.jobs.states import JobStatus

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, or its beginning.")]

jobs = new_group()


@command(jobs, "list")
def list_jobs(
    session: Session,
    *,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as bulk.expand.")] = None,
    volume: Annotated[str | None, typer.Option(help="Only jobs of this volume.", metavar="NAME")] = None,
    parent: Annotated[str | None, typer.Option(help="The lanes of this bulk job.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    """List jobs, newest first."""
    volume_id = None if volume is None else find_id(session.api, VOLUME, volume)
    parent_id = None if parent is None else find_id(session.api, JOB, parent)
    options = {"status": status, "kind": kind, "volume_id": volume_id, "parent_id": parent_id}
    filters = {name: str(value) for name, value in options.items() if value is not None}
    session.print_list("/jobs", limit, JOBS, **filters)


@command(jobs, "show")
def show_job(session: Session, job_id: JobId) -> None:
    """Show a job; for a bulk job, also the volumes that failed."""
    job = session.api.get(path_of(session.api, JOB, job_id))
    failed = [] if session.as_json else failed_items(session, job)
    session.print_members(job)
    if failed:
        session.print(failed, ITEMS)


@command(jobs, "watch")
def watch_job(session: Session, job_id: JobId) -> None:
    """Watch a job until it has ended. Exit status: 0 succeeded, 1 not succeeded, 2 the API call failed."""
    watch(session, find_id(session.api, JOB, job_id), all_changes=True)


@command(jobs, "cancel")
def cancel_job(session: Session, job_id: JobId) -> None:
    """Cancel a job: a queued one ends at once, a running one as soon as it can be stopped."""
    session.print([session.api.call("POST", f"{path_of(session.api, JOB, job_id)}/cancel")], JOBS)


@command(jobs, "retry")
def retry_job(session: Session, job_id: JobId, *, no_wait: NoWait = False) -> None:
    """Repeat what an ended job has not achieved, as a new job."""
    finish(session, session.api.call("POST", f"{path_of(session.api, JOB, job_id)}/retry"), no_wait=no_wait)
