"""The commands ``cistern jobs ...``: clients of the HTTP API."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api.cli.client import ApiObject
from api.cli.columns import ITEMS, JOBS
from api.cli.lookup import JOB, SCHEDULE, VOLUME, find_id, path_of
from api.cli.session import Session, Yes, command, confirm, new_group
from api.cli.waiting import NoWait, failed_items, finish, watch
from domain.jobs.states import JobStatus

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, or its beginning.")]

Status = Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")]
Kind = Annotated[str | None, typer.Option(help="Only jobs of this kind, such as bulk.expand.")]
OfVolume = Annotated[str | None, typer.Option(help="Only jobs of this volume.", metavar="NAME")]
OfSchedule = Annotated[str | None, typer.Option(help="Only jobs of this schedule.", metavar="NAME")]
By = Annotated[str | None, typer.Option(help="Only jobs that the key of this name has asked for.", metavar="KEY")]
Hours = Annotated[float | None, typer.Option(min=0, help="Only jobs that were accepted in the last HOURS hours.")]

jobs = new_group()


@command(jobs, "list")
def list_jobs(
    session: Session,
    *,
    status: Status = None,
    kind: Kind = None,
    volume: OfVolume = None,
    schedule: OfSchedule = None,
    by: By = None,
    hours: Hours = None,
    parent: Annotated[str | None, typer.Option(help="The lanes of this bulk job.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    """List jobs, newest first."""
    filters = _filters(session, status=status, kind=kind, volume=volume, schedule=schedule, by=by, hours=hours)
    if parent is not None:
        filters["parent_id"] = find_id(session.api, JOB, parent)
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


def _add_for_all(action: str, help_text: str) -> None:
    """Add the command that does this with all jobs that match."""

    def change_all(
        session: Session,
        *,
        status: Status = None,
        kind: Kind = None,
        volume: OfVolume = None,
        schedule: OfSchedule = None,
        by: By = None,
        hours: Hours = None,
        yes: Yes = False,
    ) -> None:
        filters = _filters(session, status=status, kind=kind, volume=volume, schedule=schedule, by=by, hours=hours)
        _change_all(session, action, filters, yes=yes)

    change_all.__doc__ = help_text
    command(jobs, f"{action}-all")(change_all)


_add_for_all("cancel", "Cancel all jobs that match, after their number is shown.")
_add_for_all("retry", "Retry all jobs that match and were not retried before, after their number is shown.")


def _filters(
    session: Session,
    *,
    status: JobStatus | None,
    kind: str | None,
    volume: str | None,
    schedule: str | None,
    by: str | None,
    hours: float | None,
) -> dict[str, str]:
    """Return the filters that are given, as the API names them."""
    options = {
        "status": status,
        "kind": kind,
        "volume_id": None if volume is None else find_id(session.api, VOLUME, volume),
        "schedule_id": None if schedule is None else find_id(session.api, SCHEDULE, schedule),
        "created_by": by,
        "created_after": None if hours is None else (datetime.now(UTC) - timedelta(hours=hours)).isoformat(),
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _change_all(session: Session, action: str, filters: dict[str, str], *, yes: bool) -> None:
    """Change all jobs that match, page by page, and print how many were changed, and why others were not."""
    path = f"/jobs/{action}"
    count = session.api.call("POST", path, {**filters, "dry_run": True})
    confirm(f"{action.capitalize()} {count['matched']:,}{'+' if count['more'] else ''} jobs?", yes=yes)
    accepted, refused = 0, Counter[str]()
    before: dict[str, str] = {}
    while True:
        page = session.api.call("POST", path, {**filters, **before})
        accepted += page["accepted"]
        refused.update(page["refused"])
        if page["next_before"] is None:
            break
        before = {"before": page["next_before"]}
    result = ApiObject({"accepted": accepted, "refused": dict(refused)})
    session.print([result], (("accepted", lambda _: f"{accepted:,}"), ("refused", lambda _: _codes(refused))))


def _codes(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(counts.items()))
