"""`cistern schedules ...`: look at schedules, run one now, pause and resume them."""

from typing import Annotated
from uuid import UUID

import typer

from api.cli.client import DEFAULT_URL, ApiCallFailed, ApiClient, AsJson, Thing, Url, api_client
from api.cli.jobs import exit_with, watch
from api.cli.render import jobs_table, schedules_table, show

Named = Annotated[str, typer.Argument(metavar="NAME", help="Its name, or its id.")]

schedules = typer.Typer(help="Look at schedules, run one now, pause and resume them.", no_args_is_help=True)


@schedules.command("list")
def list_schedules(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List schedules, each with its next run and what became of its last."""
    with api_client(url) as calls:
        show(list(calls.listed("/schedules", limit)), schedules_table, as_json=as_json)


@schedules.command("run")
def run_schedule(
    name: Named,
    *,
    wait: Annotated[bool, typer.Option("--watch", help="Watch the job until it has ended.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a schedule now, beside its times; refused while a run of it is going."""
    with api_client(url) as calls:
        job = calls.post(f"/schedules/{_find(calls, name)['id']}/run")
        if wait:
            exit_with(watch(calls, UUID(job["id"]), as_json=as_json))
    show([job], jobs_table, as_json=as_json)


@schedules.command("pause")
def pause_schedule(name: Named, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Pause a schedule; a run that is going on goes on."""
    _change(name, {"enabled": False}, as_json=as_json, url=url)


@schedules.command("resume")
def resume_schedule(name: Named, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Let a paused schedule run again, from its next time on."""
    _change(name, {"enabled": True}, as_json=as_json, url=url)


def _change(name: str, changes: Thing, *, as_json: bool, url: str) -> None:
    with api_client(url) as calls:
        schedule = calls.patch(f"/schedules/{_find(calls, name)['id']}", changes)
    show([schedule], schedules_table, as_json=as_json)


def _find(calls: ApiClient, name: str) -> Thing:
    """Find a schedule by its name, or by its id.

    Raises:
        CallFailed: there is none.
    """
    try:
        schedule_id = UUID(name)
    except ValueError:
        found = calls.get("/schedules", name=name)["items"]
        if not found:
            raise ApiCallFailed(f"there is no schedule named {name!r}") from None
        return dict(found[0])
    return calls.get(f"/schedules/{schedule_id}")
