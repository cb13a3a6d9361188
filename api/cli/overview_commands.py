"""The commands ``cistern backends``, ``cistern workers`` and ``cistern audit``: clients of the HTTP API."""

from typing import Annotated

import typer

from api.cli.columns import AUDIT, BACKENDS, WORKERS
from api.cli.session import Session, command, new_group

backends = new_group()
workers = new_group()
audit = new_group()


@command(backends, "backends")
def list_backends(session: Session) -> None:
    """List storage backends, the default first, and who serves them. System keys see the capacity too."""
    session.print(session.api.get("/backends")["items"], BACKENDS)


@command(workers, "workers")
def list_workers(session: Session) -> None:
    """List workers: who is alive, what each serves and runs. System keys see the jobs of all projects."""
    session.print(session.api.get("/workers")["items"], WORKERS)


@command(audit, "audit")
def list_audit(
    session: Session,
    *,
    name: Annotated[str | None, typer.Option(help="Only what the keys of this name have done.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as volume.delete.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only what was done to this volume, snapshot, schedule or key.", metavar="ID")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of entries.")] = 50,
) -> None:
    """List accepted changes, newest first: who asked for what, and from where. Needs a system key."""
    filters = {"name": name, "action": action, "subject_id": subject}
    given = {parameter: str(value) for parameter, value in filters.items() if value is not None}
    session.print_list("/audit", limit, AUDIT, **given)
