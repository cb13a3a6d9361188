"""The commands ``cistern projects ...``: clients of the HTTP API."""

from typing import Annotated, Any

import typer

from api.cli.client import ApiCallFailed
from api.cli.client_commands import Session, command
from api.cli.render import projects_table
from domain.db.pagination import MAX_LIMIT

Name = Annotated[str, typer.Argument(metavar="NAME")]
Volumes = Annotated[str | None, typer.Option("--max-volumes", help="Maximum number of volumes, or `none`.")]
Bytes = Annotated[str | None, typer.Option("--max-bytes", help="Maximum of all sizes in bytes, or `none`.")]
Snapshots = Annotated[str | None, typer.Option("--max-snapshots", help="Maximum number of snapshots, or `none`.")]
Jobs = Annotated[str | None, typer.Option("--max-queued-jobs", help="Maximum number of waiting jobs, or `none`.")]

projects = typer.Typer(help="Create and list projects, and limit them.", add_completion=False, no_args_is_help=True)


@command(projects, "list")
def list_projects(session: Session) -> None:
    """List projects with their limits and what they have."""
    session.print(list(session.api.list_all("/projects", MAX_LIMIT)), projects_table)


@command(projects, "create")
def create_project(session: Session, name: Name) -> None:
    """Create a project without limits."""
    session.print([session.api.call("POST", "/projects", json={"name": name})], projects_table)


@command(projects, "limit")
def limit_project(
    session: Session,
    name: Name,
    *,
    volumes: Volumes = None,
    size: Bytes = None,
    snapshots: Snapshots = None,
    jobs: Jobs = None,
) -> None:
    """Change limits of a project. What it has already, it keeps."""
    found = next((one for one in session.api.list_all("/projects", MAX_LIMIT) if one["name"] == name), None)
    if found is None:
        raise ApiCallFailed(f"there is no project named {name!r}")
    given = {"max_volumes": volumes, "max_bytes": size, "max_snapshots": snapshots, "max_queued_jobs": jobs}
    limits = {member: _number(value) for member, value in given.items() if value is not None}
    session.print([session.api.call("PATCH", f"/projects/{found['id']}", json=limits)], projects_table)


def _number(value: str) -> Any:
    """Return what the API is sent; it refuses what is no number, and names the limit."""
    if value == "none":
        return None
    return int(value) if value.isdecimal() else value
