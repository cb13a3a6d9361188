"""The commands ``cistern schedules ...``: list, run, pause, resume."""

from typing import Annotated
from uuid import UUID

import typer

from api.cli.client import DEFAULT_URL, ApiCallFailed, ApiClient, AsJson, JsonObject, Url, api_client
from api.cli.jobs import exit_with_status, watch
from api.cli.render import jobs_table, print_objects, schedules_table

NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the schedule.")]

app = typer.Typer(help="List, run, pause and resume schedules.", add_completion=False, no_args_is_help=True)


@app.command("list")
def list_schedules(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of schedules.")] = 100,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List schedules with their next time and the outcome of their last run."""
    with api_client(url) as client:
        print_objects(list(client.list_all("/schedules", limit)), schedules_table, as_json=as_json)


@app.command("run")
def run_schedule(
    name: NameOrId,
    *,
    watch_job: Annotated[bool, typer.Option("--watch", help="Watch the job until it has ended.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a schedule now, in addition to its times; fails while a run of it is active."""
    with api_client(url) as client:
        job = client.post(f"/schedules/{_find(client, name)['id']}/run")
        if watch_job:
            exit_with_status(watch(client, UUID(job["id"]), as_json=as_json))
    print_objects([job], jobs_table, as_json=as_json)


@app.command("pause")
def pause_schedule(name: NameOrId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Pause a schedule; an active run continues."""
    _change(name, {"enabled": False}, as_json=as_json, url=url)


@app.command("resume")
def resume_schedule(name: NameOrId, *, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Resume a paused schedule, starting with its next time."""
    _change(name, {"enabled": True}, as_json=as_json, url=url)


def _change(name: str, changes: JsonObject, *, as_json: bool, url: str) -> None:
    with api_client(url) as client:
        schedule = client.patch(f"/schedules/{_find(client, name)['id']}", changes)
    print_objects([schedule], schedules_table, as_json=as_json)


def _find(client: ApiClient, name: str) -> JsonObject:
    """Get a schedule by its name or id.

    Raises:
        ApiCallFailed: there is none.
    """
    try:
        schedule_id = UUID(name)
    except ValueError:
        items = client.get("/schedules", name=name)["items"]
        if not items:
            raise ApiCallFailed(f"there is no schedule named {name!r}") from None
        return dict(items[0])
    return client.get(f"/schedules/{schedule_id}")
