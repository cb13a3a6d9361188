"""The command ``cistern``.

Each command imports its code when it runs: `serve` and `work` are long-lived processes that start quickly and must not
keep the HTTP client, the tables of the client commands or each other's code in memory.
"""

import asyncio
import importlib
import importlib.metadata
import json
import math
import sys
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from domain.errors import CisternError
from domain.printable import printable, printable_lines

#: Groups of commands and single ones, and the modules that they are in.
_GROUPS: Final = {
    **dict.fromkeys(("jobs", "schedules", "audit"), "client_commands"),
    "projects": "project_commands",
    "keys": "key_commands",
}
#: Limit for open requests after a stop signal: a client that no longer reads must not keep the API from ending.
GRACEFUL_SECONDS: Final = 5
#: The exit status of a check that could not look at everything.
_CHECK_FAILED: Final = 2
#: Maximum number of subjects that the last line of a check names; each has a line of its own above.
_MAX_ENUMERATED: Final = 5


class _LazyGroup(TyperGroup):
    """Imports the groups on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _GROUPS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"api.cli.{_GROUPS[cmd_name]}")
        command = typer.main.get_command(getattr(module, cmd_name))
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

    from api.http_protocol import RESERVED_DESCRIPTORS, LimitedHttpProtocol, raise_descriptor_limit

    LimitedHttpProtocol.max_connections = raise_descriptor_limit() - RESERVED_DESCRIPTORS
    uvicorn.run(  # it handles the signals and the exit status
        "api.main:app",
        host=host,
        port=port,
        http=LimitedHttpProtocol,
        proxy_headers=False,  # X-Forwarded-For is what the client says
        access_log=access_log,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
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
    api_role: Annotated[str | None, typer.Option(help="Role of PostgreSQL that the API uses.")] = None,
    api_password_file: Annotated[Path | None, typer.Option(help="Create it, with the password in this file.")] = None,
    worker_role: Annotated[str | None, typer.Option(help="Role that the workers use; it may be the same.")] = None,
    worker_password_file: Annotated[Path | None, typer.Option(help="The same for this role.")] = None,
) -> None:
    """Migrate the database at CISTERN_DATABASE_URL to the current schema, and grant what the API and workers need."""
    from domain.db import migrations
    from domain.db.migrations.grants import Part, grant_to
    from domain.logs import configure_logging
    from domain.services import open_backends
    from domain.settings import load_settings, password_in, require_database

    settings = require_database(load_settings())
    open_backends(settings)  # report what the other processes would report
    configure_logging(settings)
    if wait:
        asyncio.run(migrations.wait_for_postgresql(settings.database_url, wait))
    roles = {Part.API: (api_role, api_password_file), Part.WORKER: (worker_role, worker_password_file)}
    passwords = {
        part: None if file is None else password_in(file, f"--{part}-password-file")
        for part, (_, file) in roles.items()
    }
    migrations.migrate(settings.database_url)
    for part, (role, _) in roles.items():
        if role is not None:
            parts = [other for other in Part if roles[other][0] == role]
            grant_to(settings.database_url, role, parts, password=passwords[part])


@app.command()
def check(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired safely.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Compare database, ledger and storage.

    Exit status: 0 all agree or was repaired, 1 something is left, 2 not everything could be looked at.
    """
    try:
        status = asyncio.run(_check(repair=repair, as_json=as_json))
    except CisternError as error:
        _fail(error, _CHECK_FAILED)
    except Exception:  # noqa: BLE001 (the interpreter would exit with 1, as after findings)
        typer.echo(printable_lines(traceback.format_exc()), err=True)
        status = _CHECK_FAILED
    sys.exit(status)


async def _check(*, repair: bool, as_json: bool) -> int:
    """Print a line per finding and a summary, and return the exit status."""
    from domain.services import open_check
    from domain.settings import load_settings

    def on_wait(seconds: float) -> None:
        typer.echo(f"waiting {math.ceil(seconds)} s for the leases of workers that may be dead", err=True)

    checked, unseen, found, left = Counter[str](), dict[str, None](), 0, 0
    async with open_check(load_settings()) as run:
        async for finding in run.findings(checked, repair=repair, on_wait=on_wait):
            typer.echo(json.dumps(asdict(finding)) if as_json else str(finding))
            if finding.is_blind:
                unseen[finding.subject] = None
            else:
                found += 1
                left += not finding.repaired
    numbers = ", ".join(f"{name}: {number}" for name, number in checked.items()) or "nothing there"
    agree = "the rest agrees" if unseen else "all agree"
    result = f"found {found}, repaired {found - left}, left {left}" if found else agree
    if unseen:
        result += f"; could not look at {_enumerated([*unseen])}"
    typer.echo(printable(f"{numbers}; {result}"), err=as_json)
    return _CHECK_FAILED if unseen else 1 if left else 0


def _enumerated(subjects: list[str]) -> str:
    more = len(subjects) - _MAX_ENUMERATED
    return ", ".join(subjects[:_MAX_ENUMERATED]) + (f" and {more} more" if more > 0 else "")


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
    typer.echo(printable(f"cistern: {' '.join(str(error).split())}"), err=True)
    sys.exit(status)
