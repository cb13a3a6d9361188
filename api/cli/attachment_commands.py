"""The commands ``cistern volumes mount`` and ``umount``, ``cistern attachments`` and ``cistern nodes``."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.client import CommandFailed, JsonObject, when_free
from api.cli.columns import ATTACHMENTS, NODES, error_text
from api.cli.lookup import VOLUME, find_id, path_of
from api.cli.session import Session, command, confirm, new_group
from domain.jobs.states import ENDED, JobStatus

Node = Annotated[
    str,
    typer.Option(
        envvar="CISTERN_NODE", help="The host, as its agent names it.", show_default="the name of this host",
        default_factory=socket.gethostname,
    ),
]  # fmt: skip
Directory = Annotated[str, typer.Argument(metavar="DIR", help="Where to mount it: a directory that is empty, or new.")]
Force = Annotated[
    bool, typer.Option("--force", help="Take it from all its holders, although its node does not answer.")
]

attachments = new_group()
nodes = new_group()


@command(attachments, "attachments")
def list_attachments(
    session: Session,
    *,
    node: Annotated[str | None, typer.Option(help="Only those on this node.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of attachments.")] = 100,
) -> None:
    """List who uses which volume, and where, newest first."""
    filters = {} if node is None else {"node": node}
    session.print_list("/attachments", limit, ATTACHMENTS, **filters)


@command(nodes, "nodes")
def list_nodes(session: Session) -> None:
    """List the hosts that use volumes."""
    session.print(session.api.get("/nodes")["items"], NODES)


def mount_volume(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the volume, its id, or the id's beginning.")],
    directory: Directory,
    *,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nothing can be written there.")] = False,
    node: Node,
) -> None:
    """Mount a volume at a directory of a host that runs `cistern node`."""
    path = str(Path(directory).resolve())
    volume = path_of(session.api, VOLUME, name)
    body = {"node": node, "holder": f"mount:{path}", "mode": "ro" if read_only else "rw", "path": path}
    job = _ended(session, "POST", f"{volume}/attachments", body)
    if session.as_json:
        session.print([job], ())
    else:
        typer.echo(path)


def umount_volume(
    session: Session,
    what: Annotated[
        str, typer.Argument(metavar="DIR|NAME", help="The directory; or the volume, if it is mounted once.")
    ],
    *,
    node: Node,
    force: Force = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Unmount a volume from a directory of a host that runs `cistern node`."""
    found = _attachment(session, what, node)
    if force:
        question = f"Take the volume from {found['node']}? What that host has not written yet is lost."
        confirm(question, yes=yes)
    path = f"/volumes/{found['volume_id']}/attachments/{found['id']}"
    job = _ended(session, "DELETE", path, params={"force": "true"} if force else {})
    if session.as_json:
        session.print([job], ())


def _attachment(session: Session, what: str, node: str) -> JsonObject:
    """Find the attachment that a directory or a volume means.

    Raises:
        CommandFailed: no attachment matches, or several do.
    """
    found: Sequence[JsonObject]
    if "/" in what or what in (".", ".."):
        path = str(Path(what).resolve())
        listed = session.api.list_all("/attachments", node=node, holder=f"mount:{path}")
        found = [one for one in listed if one["path"] == path]
    else:
        volume_id = find_id(session.api, VOLUME, what)
        found = session.api.list_all("/attachments", volume_id=volume_id)
    if not found:
        raise CommandFailed(f"no volume is mounted for {what!r}: `cistern attachments` lists what is")
    if len(found) > 1:
        places = ", ".join(sorted(str(one["path"] or one["holder"]) for one in found))
        raise CommandFailed(f"{what!r} has several holders, name the directory: {places}")
    return found[0]


def _ended(session: Session, method: str, path: str, body: Any = None, **request: Any) -> JsonObject:
    """Send a request and return its job once it has succeeded; wait for other jobs that hold the volume.

    Raises:
        CommandFailed: the job has not succeeded.
    """

    def follow(job_id: str) -> None:
        _wait(session, job_id)

    requested = when_free(lambda: session.api.call(method, path, body, **request), follow)
    job = _wait(session, requested["id"])
    if job["status"] != JobStatus.SUCCEEDED:
        raise CommandFailed(error_text(job) or f"the job {job['id']} was cancelled")
    return job


def _wait(session: Session, job_id: str) -> JsonObject:
    """Return a job at its end."""
    job: JsonObject = {}
    for job in session.api.changes(f"/jobs/{job_id}"):
        if job["status"] in ENDED:
            break
    return job
