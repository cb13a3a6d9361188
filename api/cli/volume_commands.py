"""The commands ``cistern volumes ...``: clients of the HTTP API."""

import enum
from typing import Annotated, Any

import typer

from api.cli.attachment_commands import mount_volume, umount_volume
from api.cli.client import JsonObject
from api.cli.columns import PLAN, VOLUMES
from api.cli.lookup import VOLUME, path_of
from api.cli.selection import (
    SELECTORS,
    Autogrow,
    Backend,
    By,
    CooldownSeconds,
    Every,
    InodesAbove,
    MaxConcurrent,
    Percent,
    To,
    UpTo,
    UsageAbove,
    given,
    growth,
    selection,
    thresholds,
)
from api.cli.session import Label, NewNameOption, Session, UsageError, Yes, command, confirm, labels_of, new_group
from api.cli.sizes import size_of, size_text
from api.cli.waiting import NoWait, finish

NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name of the volume, its id, or the id's beginning.")]
OneName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Name or id of one volume; instead of options that select many.")
]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the new volume.")]
Size = Annotated[str, typer.Option(help="Such as 10GiB; `10G` is the same, `10GB` is 10^10 bytes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would grow, and change nothing.")]
_OF_MANY = "--usage-above, --inodes-above, --cooldown-seconds, --up-to, --autogrow"
_LABELS_HELP = "A label; repeatable. All labels are replaced by those that are given."


class Filesystem(enum.StrEnum):
    """A file system that a volume may have."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"


volumes = new_group()


@command(volumes, "list")
def list_volumes(
    session: Session,
    *,
    state: Annotated[str | None, typer.Option(help="Only volumes in this state, such as available.")] = None,
    label: Label = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of volumes.")] = 100,
) -> None:
    """List volumes, newest first."""
    filters: dict[str, Any] = {} if state is None else {"state": state}
    if terms := labels_of(label):
        filters["label"] = [f"{key}:{value}" for key, value in terms.items()]
    session.print_list("/volumes", limit, VOLUMES, **filters)


@command(volumes, "show")
def show_volume(session: Session, name: NameOrId) -> None:
    """Show a volume."""
    session.print_members(session.api.get(path_of(session.api, VOLUME, name)))


@command(volumes, "create")
def create_volume(
    session: Session,
    name: NewName,
    *,
    size: Size,
    backend: Annotated[str | None, typer.Option(help="Where it is stored.", show_default="the default")] = None,
    filesystem: Annotated[
        Filesystem | None, typer.Option(help="The file system that is made in it.", show_default="none")
    ] = None,
    label: Label = None,
    no_wait: NoWait = False,
) -> None:
    """Create an empty volume, with or without a file system."""
    body = {"name": name, "size": size_of(size), "labels": labels_of(label), "backend": backend}
    if filesystem is not None:
        body["filesystem"] = filesystem.value
    finish(session, session.api.call("POST", "/volumes", body), no_wait=no_wait)


@command(volumes, "update")
def update_volume(
    session: Session,
    name: NameOrId,
    *,
    new_name: NewNameOption = None,
    label: Annotated[list[str] | None, typer.Option(help=_LABELS_HELP, metavar="KEY=VALUE")] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Remove all labels.")] = False,
    usage_above: Annotated[float | None, typer.Option(help="Autogrow: when more than this percentage is used.")] = None,
    inodes_above: Annotated[float | None, typer.Option(help="Autogrow: or more than this of the inodes.")] = None,
    cooldown_seconds: Annotated[int | None, typer.Option(help="Autogrow: not again for so long.")] = None,
    by: Annotated[str | None, typer.Option(help="Autogrow: how much to add, such as 10GiB.", metavar="SIZE")] = None,
    percent: Annotated[float | None, typer.Option(help="Autogrow: how much to add, in percent of the size.")] = None,
    up_to: Annotated[str | None, typer.Option(help="Autogrow: never beyond this size.", metavar="SIZE")] = None,
    no_autogrow: Annotated[bool, typer.Option("--no-autogrow", help="Remove the autogrow policy.")] = False,
) -> None:
    """Change the name, the labels or the autogrow policy of a volume; what is not given stays as it is."""
    when = thresholds(usage_above, inodes_above, cooldown_seconds)
    labels, policy = labels_of(label), growth(to=None, by=by, percent=percent, up_to=up_to, when=when)
    if (labels and no_labels) or (policy and no_autogrow):
        raise UsageError("--no-labels and --no-autogrow remove what the other options set: give one of them")
    changes = given({"name": new_name, "labels": labels or ({} if no_labels else None), "autogrow": policy or None})
    if no_autogrow:
        changes["autogrow"] = None
    if not changes:
        raise UsageError("say what to change: `cistern volumes update --help` lists the options")
    session.print([session.api.call("PATCH", path_of(session.api, VOLUME, name), changes)], VOLUMES)


@command(volumes, "expand")
def expand_volumes(
    session: Session,
    name: OneName = None,
    *,
    to: To = None,
    by: By = None,
    percent: Percent = None,
    label: Label = None,
    backend: Backend = None,
    every: Every = False,
    usage_above: UsageAbove = None,
    inodes_above: InodesAbove = None,
    cooldown_seconds: CooldownSeconds = None,
    up_to: UpTo = None,
    autogrow: Autogrow = False,
    max_concurrent: MaxConcurrent = None,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
) -> None:
    """Expand one volume, or all that are selected by --label, --backend or --all."""
    selected = selection(label, backend, every=every, max_concurrent=max_concurrent)
    if (name is None) == (selected is None):
        raise UsageError(f"give either the name of a volume, or options that select many: {SELECTORS}")
    grown = growth(to=to, by=by, percent=percent)
    when = thresholds(usage_above, inodes_above, cooldown_seconds)
    of_many = growth(to=None, by=None, percent=None, up_to=up_to, autogrow=autogrow, when=when)
    if name is not None:
        if of_many or max_concurrent:
            raise UsageError(f"{_OF_MANY} and --max-concurrent are for many volumes")
        path = path_of(session.api, VOLUME, name)
        if not dry_run:
            return finish(session, session.api.call("POST", f"{path}/expand", grown), no_wait=no_wait)
        selected = {"ids": [path.rpartition("/")[2]], "step": 4096}  # as one volume is rounded
    body = {**(selected or {}), **grown, **of_many}
    if dry_run:
        return _print_plan(session, session.api.call("POST", "/volumes/expand", body | {"dry_run": True}))
    return finish(session, session.api.call("POST", "/volumes/expand", body), no_wait=no_wait)


@command(volumes, "delete")
def delete_volume(session: Session, name: NameOrId, *, yes: Yes = False, no_wait: NoWait = False) -> None:
    """Delete a volume and its data."""
    path = path_of(session.api, VOLUME, name)
    if not yes:
        volume = session.api.get(path)
        confirm(f"Delete the volume {volume['name']} ({size_text(volume['size'])}) and all its data?", yes=yes)
    finish(session, session.api.call("DELETE", path), no_wait=no_wait)


command(volumes, "mount")(mount_volume)
command(volumes, "umount")(umount_volume)


def _print_plan(session: Session, plan: JsonObject) -> None:
    if session.as_json:
        return session.print([plan], PLAN)
    session.print(plan["items"], PLAN)
    from api.cli.render import print_text

    more = " The first thousand are listed." if plan["truncated"] else ""
    unmeasured = f" {plan['unmeasured']} are not measured yet." if plan["unmeasured"] else ""
    text = f"{plan['grows']} of {plan['total']} volumes would grow, by {size_text(plan['bytes'])} in all."
    return print_text(f"{text}{unmeasured}{more}")
