"""The commands ``cistern snapshots ...``: clients of the HTTP API."""

from typing import Annotated, Any

import typer

from api.cli.columns import SNAPSHOTS
from api.cli.lookup import VOLUME, find_id, find_snapshot_id, path_of
from api.cli.selection import SELECTORS, Backend, Every, MaxConcurrent, selection
from api.cli.session import Label, Session, UsageError, Yes, command, confirm, labels_of, new_group
from api.cli.sizes import size_of
from api.cli.waiting import NoWait, finish

Snapshot = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="VOLUME/NAME, or its name, its id or the id's beginning.")
]
NewSnapshot = Annotated[
    str,
    typer.Argument(
        metavar="VOLUME/NAME", help="The volume and the name of the snapshot; of many, the name's beginning."
    ),
]

AllowTorn = Annotated[
    bool,
    typer.Option("--allow-torn", help="Also of a volume in use whose blocks cannot be shared: it may mix moments."),
]

snapshots = new_group()


@command(snapshots, "list")
def list_snapshots(
    session: Session,
    *,
    volume: Annotated[str | None, typer.Option(help="Only those of this volume.", metavar="NAME")] = None,
    state: Annotated[str | None, typer.Option(help="Only snapshots in this state, such as ready.")] = None,
    label: Label = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of snapshots.")] = 100,
) -> None:
    """List snapshots, newest first."""
    filters: dict[str, Any] = {} if state is None else {"state": state}
    if terms := labels_of(label):
        filters["label"] = [f"{key}:{value}" for key, value in terms.items()]
    if volume is not None:
        filters["volume_id"] = find_id(session.api, VOLUME, volume)
    session.print_list("/snapshots", limit, SNAPSHOTS, **filters)


@command(snapshots, "take")
def take_snapshots(
    session: Session,
    name: NewSnapshot,
    *,
    label: Label = None,
    backend: Backend = None,
    every: Every = False,
    max_concurrent: MaxConcurrent = None,
    allow_torn: AllowTorn = False,
    no_wait: NoWait = False,
) -> None:
    """Take a snapshot of one volume, or of all that are selected by --label, --backend or --all.

    With VOLUME/NAME, --label gives the snapshot a label.
    """
    volume, slash, of_one = name.rpartition("/")
    selected = selection(None if slash else label, backend, every=every, max_concurrent=max_concurrent)
    if bool(slash) == (selected is not None):
        raise UsageError(f"give either VOLUME/NAME, or a name and options that select many volumes: {SELECTORS}")
    if selected is None:
        path = path_of(session.api, VOLUME, volume)
        body = {"name": of_one, "labels": labels_of(label), "allow_torn": allow_torn}
        job = session.api.call("POST", f"{path}/snapshots", body)
    else:
        job = session.api.call("POST", "/volumes/snapshots", {**selected, "name": name, "allow_torn": allow_torn})
    finish(session, job, no_wait=no_wait)


@command(snapshots, "restore")
def restore_snapshot(session: Session, snapshot: Snapshot, *, yes: Yes = False, no_wait: NoWait = False) -> None:
    """Restore the data of a volume from a snapshot."""
    path = f"/snapshots/{find_snapshot_id(session.api, snapshot)}"
    question = "Replace the data of the volume {volume} by the snapshot {name} of {created_at}?"
    _confirm(session, path, question, yes=yes)
    finish(session, session.api.call("POST", f"{path}/restore"), no_wait=no_wait)


@command(snapshots, "clone")
def clone_snapshot(
    session: Session,
    snapshot: Snapshot,
    name: Annotated[str, typer.Argument(help="Name of the new volume.")],
    *,
    size: Annotated[str | None, typer.Option(help="Such as 10GiB.", show_default="that of the snapshot")] = None,
    label: Label = None,
    no_wait: NoWait = False,
) -> None:
    """Create a volume with the bytes of a snapshot."""
    body: dict[str, Any] = {
        "name": name,
        "from_snapshot": find_snapshot_id(session.api, snapshot),
        "labels": labels_of(label),
    }
    if size is not None:
        body["size"] = size_of(size)
    finish(session, session.api.call("POST", "/volumes", body), no_wait=no_wait)


@command(snapshots, "delete")
def delete_snapshot(session: Session, snapshot: Snapshot, *, yes: Yes = False, no_wait: NoWait = False) -> None:
    """Delete a snapshot. Volumes that were made from it stay."""
    path = f"/snapshots/{find_snapshot_id(session.api, snapshot)}"
    _confirm(session, path, "Delete the snapshot {name} of the volume {volume}, of {created_at}?", yes=yes)
    finish(session, session.api.call("DELETE", path), no_wait=no_wait)


def _confirm(session: Session, path: str, question: str, *, yes: bool) -> None:
    if not yes:
        found = session.api.get(path)
        volume = session.api.get(f"/volumes/{found['volume_id']}")["name"]
        confirm(question.format(**{**found, "volume": volume}), yes=yes)
