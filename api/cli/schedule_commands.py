"""The commands ``cistern schedules ...``: clients of the HTTP API."""

import enum
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import typer

from api.cli.client import JsonObject
from api.cli.columns import SCHEDULES
from api.cli.lookup import SCHEDULE, path_of
from api.cli.selection import (
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
from api.cli.session import Label, NewNameOption, Session, UsageError, Yes, command, confirm, new_group
from api.cli.waiting import NoWait, finish

NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule, its id, or the id's beginning.")]
Keep = Annotated[int | None, typer.Option(min=1, help="Keep this number of the schedule's snapshots per volume.")]
KeepDays = Annotated[int | None, typer.Option(min=1, help="Keep the schedule's snapshots for this many days.")]
Prefix = Annotated[str | None, typer.Option(help="Of the snapshots' names.", show_default="NAME")]

#: Members of params that belong together: a change of one of them replaces all.
_SELECTION: Final = ("ids", "labels", "backend")
_GROWTH: Final = ("to", "by", "percent", "step", "up_to", "usage_above", "inodes_above", "cooldown_seconds", "policy")
_RETENTION: Final = ("keep_last", "keep_days")

schedules = new_group()


class Action(enum.StrEnum):
    """What a schedule does."""

    EXPAND = "bulk.expand"
    SNAPSHOT = "bulk.snapshot"


@command(schedules, "list")
def list_schedules(
    session: Session, *, limit: Annotated[int, typer.Option(min=1, help="Maximum number of schedules.")] = 100
) -> None:
    """List schedules with their next time and the outcome of their last run."""
    session.print_list("/schedules", limit, SCHEDULES)


@command(schedules, "create")
def create_schedule(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the new schedule.")],
    *,
    cron: Annotated[str, typer.Option(help="Minute, hour, day of month, month and day of week: '30 2 * * *'.")],
    time_zone: Annotated[str, typer.Option(help="Of the cron expression, such as Europe/Berlin.")] = "UTC",
    action: Annotated[Action, typer.Option(help="Expand volumes, or take snapshots of them.")],
    label: Label = None,
    backend: Backend = None,
    every: Every = False,
    max_concurrent: MaxConcurrent = None,
    to: To = None,
    by: By = None,
    percent: Percent = None,
    usage_above: UsageAbove = None,
    inodes_above: InodesAbove = None,
    cooldown_seconds: CooldownSeconds = None,
    up_to: UpTo = None,
    autogrow: Autogrow = False,
    prefix: Prefix = None,
    keep_last: Keep = None,
    keep_days: KeepDays = None,
) -> None:
    """Create a schedule that expands the selected volumes, or takes snapshots of them."""
    selected = selection(label, backend, every=every, max_concurrent=max_concurrent)
    if selected is None:
        raise UsageError("say which volumes: --label, --backend or --all")
    when = thresholds(usage_above, inodes_above, cooldown_seconds)
    grown = growth(to=to, by=by, percent=percent, up_to=up_to, autogrow=autogrow, when=when)
    kept = given({"name": prefix, "keep_last": keep_last, "keep_days": keep_days})
    if action is Action.EXPAND and kept:
        raise UsageError("--prefix, --keep-last and --keep-days are for --action bulk.snapshot")
    if action is Action.SNAPSHOT:
        if grown:
            raise UsageError("options that make volumes grow are for --action bulk.expand")
        kept = {"name": name, **kept}
    body = {"name": name, "cron": cron, "time_zone": time_zone, "action": action.value}
    created = session.api.call("POST", "/schedules", {**body, "params": {**selected, **grown, **kept}})
    session.print([created], SCHEDULES)


@command(schedules, "update")
def update_schedule(
    session: Session,
    name: NameOrId,
    *,
    new_name: NewNameOption = None,
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day of month, month and day of week.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Of the cron expression, such as Europe/Berlin.")] = None,
    catch_up: Annotated[int | None, typer.Option(min=0, help="How late a run may start, in seconds.")] = None,
    label: Label = None,
    backend: Backend = None,
    every: Every = False,
    max_concurrent: MaxConcurrent = None,
    to: To = None,
    by: By = None,
    percent: Percent = None,
    usage_above: UsageAbove = None,
    inodes_above: InodesAbove = None,
    cooldown_seconds: CooldownSeconds = None,
    up_to: UpTo = None,
    autogrow: Autogrow = False,
    prefix: Prefix = None,
    keep_last: Keep = None,
    keep_days: KeepDays = None,
) -> None:
    """Change a schedule, and become its owner; what is not given stays as it is.

    Options that select volumes, that say how much they grow, or what is kept, replace all of their kind.
    """
    path, when = path_of(session.api, SCHEDULE, name), thresholds(usage_above, inodes_above, cooldown_seconds)
    grown = growth(to=to, by=by, percent=percent, up_to=up_to, autogrow=autogrow, when=when)
    params = (
        (_SELECTION, selection(label, backend, every=every, max_concurrent=None)),
        (_GROWTH, grown or None),
        (_RETENTION, given({"keep_last": keep_last, "keep_days": keep_days}) or None),
        ((), given({"name": prefix, "max_concurrent": max_concurrent}) or None),
    )
    changes = given({"name": new_name, "cron": cron, "time_zone": time_zone, "catch_up_seconds": catch_up})
    headers: dict[str, str] = {}
    if any(members is not None for _, members in params):
        schedule, headers = session.api.get_to_change(path)
        changes["params"] = _replaced(schedule["params"], params)
    if not changes:
        raise UsageError("say what to change: `cistern schedules update --help` lists the options")
    session.print([session.api.call("PATCH", path, changes, headers=headers)], SCHEDULES)


def _replaced(params: JsonObject, groups: Iterable[tuple[Sequence[str], dict[str, Any] | None]]) -> JsonObject:
    """Return params in which the members of each group with new values are replaced by these."""
    changed = dict(params)
    for names, members in groups:
        if members is not None:
            changed = {name: value for name, value in changed.items() if name not in names} | members
    return changed


@command(schedules, "run")
def run_schedule(session: Session, name: NameOrId, *, no_wait: NoWait = False) -> None:
    """Run a schedule now, in addition to its times; fails while a run of it is active."""
    finish(session, session.api.call("POST", f"{path_of(session.api, SCHEDULE, name)}/run"), no_wait=no_wait)


@command(schedules, "pause")
def pause_schedule(session: Session, name: NameOrId) -> None:
    """Pause a schedule; an active run continues."""
    session.print([_enable(session, name, enabled=False)], SCHEDULES)


@command(schedules, "resume")
def resume_schedule(session: Session, name: NameOrId) -> None:
    """Resume a paused schedule, starting with its next time."""
    session.print([_enable(session, name, enabled=True)], SCHEDULES)


@command(schedules, "delete")
def delete_schedule(session: Session, name: NameOrId, *, yes: Yes = False) -> None:
    """Delete a schedule and the list of its runs; jobs that it has created continue."""
    path = path_of(session.api, SCHEDULE, name)
    schedule = session.api.get(path)
    confirm(f"Delete the schedule {schedule['name']} and the list of its runs?", yes=yes)
    session.api.delete(path)
    session.print([schedule], SCHEDULES)


def _enable(session: Session, name: str, *, enabled: bool) -> JsonObject:
    change: dict[str, Any] = {"enabled": enabled}
    return session.api.call("PATCH", path_of(session.api, SCHEDULE, name), change)
