"""The commands ``cistern projects ...``: clients of the HTTP API."""

from typing import Annotated, Any, Final

import typer

from api.cli.client import ApiCallFailed
from api.cli.columns import PROJECTS
from api.cli.session import Session, command, new_group
from api.cli.sizes import size_of

Name = Annotated[str, typer.Argument(metavar="NAME")]
Volumes = Annotated[str | None, typer.Option("--max-volumes", help="Maximum number of volumes, or `none`.")]
Bytes = Annotated[str | None, typer.Option("--max-bytes", help="Maximum of all sizes, such as 1TiB, or `none`.")]
Snapshots = Annotated[str | None, typer.Option("--max-snapshots", help="Maximum number of snapshots, or `none`.")]
Jobs = Annotated[str | None, typer.Option("--max-queued-jobs", help="Maximum number of waiting jobs, or `none`.")]

#: More projects than anyone has.
_ALL: Final = 10_000

projects = new_group()


@command(projects, "list")
def list_projects(session: Session) -> None:
    """List projects with their limits and what they have."""
    session.print_list("/projects", _ALL, PROJECTS)


@command(projects, "create")
def create_project(session: Session, name: Name) -> None:
    """Create a project without limits."""
    session.print([session.api.call("POST", "/projects", {"name": name})], PROJECTS)


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
    found = _find(session, name)
    given = {"max_volumes": volumes, "max_bytes": size, "max_snapshots": snapshots, "max_queued_jobs": jobs}
    limits = {member: _limit(value) for member, value in given.items() if value is not None}
    session.print([session.api.call("PATCH", f"/projects/{found}", limits)], PROJECTS)


def _find(session: Session, text: str) -> str:
    """Return the id of the project that is named so; there are few, and they have no other filter."""
    every = session.api.list_all("/projects")
    found = next((one for one in every if text in (one["name"], one["id"])), None)
    if found is None:
        raise ApiCallFailed(f"there is no project named {text!r}")
    return str(found["id"])


def _limit(value: str) -> Any:
    """Return what the API is sent; it refuses what is no number or size, and names the limit."""
    return None if value == "none" else size_of(value)
