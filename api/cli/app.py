"""The command ``cistern``.

Each command imports its code when it runs: `serve` and `work` are long-lived processes that start quickly and must not
keep the HTTP client, the tables of the client commands or each other's code in memory.
"""

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from domain.errors import CisternError
from domain.tasks import end_on_sigterm

#: Groups of commands that are clients of the HTTP API, by name.
_CLIENT_GROUPS: Final = {"jobs": "api.cli.jobs", "schedules": "api.cli.schedules"}


class _LazyGroup(TyperGroup):
    """Imports the groups in `_CLIENT_GROUPS` on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_CLIENT_GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _CLIENT_GROUPS:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(importlib.import_module(_CLIENT_GROUPS[cmd_name]).app)
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
    from api.cli.stack import stack_from_options  # noqa: PLC0415
    from api.cli.stack import up as run_up  # noqa: PLC0415

    run_up(stack_from_options(host=host, port=port, workers=workers, data_dir=data_dir))


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 means a free one.")] = 8000,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = False,
) -> None:
    """Run one API process until a signal ends it; needs CISTERN_DATABASE_URL and CISTERN_REDIS_URL."""
    from api.cli.serve import serve as run_api  # noqa: PLC0415

    run_api(host=host, port=port, access_log=access_log)


@app.command()
def work() -> None:
    """Run one worker process until a signal ends it; needs CISTERN_DATABASE_URL and CISTERN_REDIS_URL."""
    from api.cli.serve import work as run_worker  # noqa: PLC0415

    run_worker()


@app.command()
def demo(
    *,
    volumes: Annotated[int, typer.Option(min=1, max=10_000, help="Number of volumes to create and expand.")] = 100,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of workers.")] = 2,
) -> None:
    """Create, snapshot, expand and restore volumes on a temporary stack, and compare the files with the API."""
    from api.cli.demo import demo as run_demo  # noqa: PLC0415

    run_demo(volumes=volumes, workers=workers)


@app.command()
def migrate(
    *,
    wait: Annotated[int, typer.Option(min=0, help="Seconds to wait for PostgreSQL to respond.")] = 0,
) -> None:
    """Migrate the database at CISTERN_DATABASE_URL to the current schema."""
    from api.cli.migrate import migrate as run_migrations  # noqa: PLC0415

    run_migrations(wait_seconds=wait)


@app.command()
def check(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired safely.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Compare database, ledger and storage. Exit status: 0 consistent or repaired, 1 findings left, 2 check failed."""
    from api.cli.check import check as run_check  # noqa: PLC0415

    sys.exit(run_check(repair=repair, as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("cistern"))


def main() -> None:
    """Run the command line. A CisternError is printed in one line; the exit status is 1, or what the error defines."""
    end_on_sigterm()
    try:
        app()
    except CisternError as error:
        typer.echo(f"cistern: {' '.join(str(error).split())}", err=True)
        sys.exit(getattr(error, "exit_status", 1))
