"""The command ``cistern``.

Each command imports its code when it runs: `serve` and `work` are long-lived processes that start quickly and must not
keep the HTTP client, the tables of the client commands or each other's code in memory.
"""

import asyncio
import importlib
import importlib.metadata
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from domain.errors import CisternError

#: Groups of commands that are clients of the HTTP API.
_CLIENT_GROUPS: Final = ("jobs", "schedules")
#: Limit for open requests after a stop signal: a client that no longer reads must not keep the API from ending.
GRACEFUL_SECONDS: Final = 5
#: How long an idle connection is kept, in seconds: longer than clients wait between two polls, and than load balancers
#: (60 s) keep theirs, so that it is not the server that closes a connection on which a request is under way.
KEEP_ALIVE_SECONDS: Final = 75


class _LazyGroup(TyperGroup):
    """Imports the groups in `_CLIENT_GROUPS` on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_CLIENT_GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _CLIENT_GROUPS:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(getattr(importlib.import_module("api.cli.client_commands"), cmd_name))
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_LazyGroup,
    help="Cistern manages volumes and snapshots; every change is a job that is never lost.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of the API.")] = 8000,
    host: Annotated[str, typer.Option(help="Address of the API.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=0, max=64, help="Number of workers.")] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of all data.", show_default=".cistern")] = None,
) -> None:
    """Run the API and its workers until Ctrl-C, with a private PostgreSQL and Redis unless the settings name them."""
    from api.cli import stack
    from domain.settings import load_settings

    settings = load_settings() if data_dir is None else load_settings(data_dir=data_dir)
    stack.up(stack.Stack(settings=settings, host=host, port=port, workers=workers))


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 means a free one.")] = 8000,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = False,
) -> None:
    """Run one API process until a signal ends it; needs CISTERN_DATABASE_URL and CISTERN_REDIS_URL."""
    import uvicorn

    uvicorn.run(  # it handles the signals and the exit status
        "api.main:app",
        host=host,
        port=port,
        access_log=access_log,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


@app.command()
def work() -> None:
    """Run one worker process until a signal ends it; needs CISTERN_DATABASE_URL and CISTERN_REDIS_URL."""
    from worker.main import main as run_worker  # as `python -m worker` does

    run_worker()


@app.command()
def demo(
    *,
    volumes: Annotated[int, typer.Option(min=1, max=10_000, help="Number of volumes to create and expand.")] = 100,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of workers.")] = 2,
) -> None:
    """Create, snapshot, expand and restore volumes on a temporary stack, and compare the files with the API."""
    from api.cli.demo import demo as run_demo

    run_demo(volumes=volumes, workers=workers)


@app.command()
def migrate(
    *,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for PostgreSQL to respond.")] = 0,
) -> None:
    """Migrate the database at CISTERN_DATABASE_URL to the current schema."""
    from domain.db import migrations
    from domain.logs import configure_logging
    from domain.settings import load_settings, require_database

    settings = require_database(load_settings())
    configure_logging(settings)
    if wait:
        asyncio.run(migrations.wait_for_postgresql(settings.database_url, wait))
    migrations.migrate(settings.database_url)


@app.command()
def check(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired safely.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Compare database, ledger and storage. Exit status: 0 consistent or repaired, 1 findings left, 2 check failed."""
    try:
        left = asyncio.run(_check(repair=repair, as_json=as_json))
    except CisternError as error:
        _fail(error, 2)
    sys.exit(1 if left else 0)


async def _check(*, repair: bool, as_json: bool) -> int:
    """Print a line per finding and a summary, and return the number of findings that are left."""
    from domain.services import open_check
    from domain.settings import load_settings

    checked, found, left = Counter[str](), 0, 0
    async with open_check(load_settings()) as run:
        async for finding in run.findings(checked, repair=repair):
            typer.echo(json.dumps(asdict(finding)) if as_json else str(finding))
            found += 1
            left += not finding.repaired
    numbers = ", ".join(f"{name}: {number}" for name, number in checked.items()) or "nothing there"
    result = f"found {found}, repaired {found - left}, left {left}" if found else "all agree"
    typer.echo(f"{numbers}; {result}", err=as_json)
    return left


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("cistern"))


def main() -> None:
    """Run the command line. A CisternError is printed in one line; the exit status is 1, or what the error defines."""
    try:
        app()
    except CisternError as error:
        _fail(error, getattr(error, "exit_status", 1))


def _fail(error: CisternError, status: int) -> NoReturn:
    typer.echo(f"cistern: {' '.join(str(error).split())}", err=True)
    sys.exit(status)
