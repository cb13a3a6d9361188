"""Waits for the end of a job, and shows its progress."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, NoReturn

import typer

from api.cli.client import JsonObject
from api.cli.columns import ITEMS, JOBS, error_text, progress_text
from api.cli.session import Session, print_json
from domain.jobs.states import ENDED, JobStatus

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the job is accepted, not when it has ended.")]

#: Maximum number of failed items shown for a bulk job.
_MAX_FAILED_ITEMS: Final = 20
#: The status of a process that Ctrl-C ended.
_INTERRUPTED: Final = 130

Update = Callable[[JsonObject], None]


def finish(session: Session, job: JsonObject, *, no_wait: bool) -> None:
    """Wait for the job that a command has requested, and print it at its end; or print it as it was accepted.

    Raises:
        typer.Exit: as `watch`.
    """
    if no_wait:
        session.print([job], JOBS)
    else:
        watch(session, job["id"], all_changes=False)


def watch(session: Session, job_id: str, *, all_changes: bool) -> NoReturn:
    """Show a job until it has ended; as JSON, with or without all the changes on the way.

    Raises:
        typer.Exit: 0 if it has succeeded, 1 if not, 130 at Ctrl-C.
    """
    job: JsonObject = {}
    try:
        with _display(session, all_changes=all_changes) as update:
            for job in session.api.changes(f"/jobs/{job_id}"):
                update(job)
                if job["status"] in ENDED:
                    break
    except KeyboardInterrupt:
        typer.echo(
            f"The job goes on. `cistern jobs watch {job_id}` watches it, `cistern jobs cancel {job_id}` ends it.",
            err=True,
        )
        raise typer.Exit(_INTERRUPTED) from None
    if session.as_json and not all_changes:
        print_json([job])
    if not session.as_json:
        _print_failures(session, job)
    raise typer.Exit(0 if job["status"] == JobStatus.SUCCEEDED else 1)


def _print_failures(session: Session, job: JsonObject) -> None:
    if text := error_text(job):
        from api.cli.render import print_text

        print_text(text)
    if failed := failed_items(session, job):
        session.print(failed, ITEMS)


def failed_items(session: Session, job: JsonObject) -> Sequence[JsonObject]:
    """Return the items of a bulk job that have failed, up to a number."""
    if not (job["progress"] or {}).get("failed"):
        return []
    return session.api.list_first(f"/jobs/{job['id']}/items", _MAX_FAILED_ITEMS, status="failed").items


@contextmanager
def _display(session: Session, *, all_changes: bool) -> Iterator[Update]:
    """Yield a function that shows a changed job: as JSON, as a bar on a terminal, or as a line elsewhere."""
    if session.as_json:
        yield lambda job: print_json([job] if all_changes else [])
        return
    from api.cli.render import open_console, printable_object

    console = open_console()
    if console.is_terminal:
        from api.cli.bar import progress_bar

        with progress_bar() as update:
            yield lambda job: update(printable_object(job))
        return

    def print_line(job: JsonObject) -> None:
        shown = printable_object(job)
        console.print(*filter(None, (shown["id"], shown["kind"], shown["status"], progress_text(shown))))

    yield print_line
