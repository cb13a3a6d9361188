"""`cistern ...`: the command line."""

import asyncio
import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from api.cli.check import CANNOT
from api.cli.check import check as run_check
from api.cli.client import ApiCallFailed
from api.cli.demo import demo as run_demo
from api.cli.jobs import jobs
from api.cli.schedules import schedules
from api.cli.stack import stack_from_options
from api.cli.stack import up as run_up
from domain.db.migrations import migrate as run_migrations
from domain.db.migrations import wait_for_postgresql
from domain.errors import CisternError
from domain.logs import configure_logging
from domain.settings import load_settings, require_database

app = typer.Typer(
    help="Cistern keeps volumes, and every change to one is a job that is never lost.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs, name="jobs")
app.add_typer(schedules, name="schedules")


@app.command()
def up(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Where the API listens.")] = 8000,
    host: Annotated[str, typer.Option(help="On which address it listens.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=0, max=64, help="How many workers to run.")] = 2,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.", show_default=".cistern")] = None,
) -> None:
    """Run the API and its workers until Ctrl-C, with a private PostgreSQL and Redis if the settings name none."""
    run_up(stack_from_options(host=host, port=port, workers=workers, data_dir=data_dir))


@app.command()
def demo(
    *,
    volumes: Annotated[int, typer.Option(min=1, max=10_000, help="How many volumes to create and expand.")] = 100,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers share the jobs.")] = 2,
) -> None:
    """Create and expand volumes for real, on a fresh stack that is gone afterwards, and measure the files."""
    run_demo(volumes=volumes, workers=workers)


@app.command()
def migrate(
    *,
    wait: Annotated[int, typer.Option(min=0, help="For how many seconds to wait for PostgreSQL to answer.")] = 0,
) -> None:
    """Bring the schema of the database at CISTERN_DATABASE_URL up to date."""
    settings = require_database(load_settings())
    configure_logging(settings)
    if wait:
        asyncio.run(wait_for_postgresql(settings.database_url, wait))
    run_migrations(settings.database_url)


@app.command()
def check(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is safe to mend.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Compare rows, ledger and disk: exit code 0 if all agree or was mended, 1 if something is left, 2 if it cannot."""
    sys.exit(run_check(repair=repair, as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(importlib.metadata.version("cistern"))


def main() -> None:
    """Run the command line; whatever Cistern raises on purpose ends as one line and exit code 1.

    It is 2 if the API could not be asked: a job that it was about may have succeeded.
    """
    try:
        app()
    except CisternError as error:
        typer.echo(f"cistern: {' '.join(str(error).split())}", err=True)
        sys.exit(CANNOT if isinstance(error, ApiCallFailed) else 1)
