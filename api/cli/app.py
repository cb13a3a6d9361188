"""The command ``cistern``.

Each command imports its code when it runs: `serve` and `work` are long-lived processes that start quickly and must not
keep the client commands in memory, and a client command must not take longer to start than to run.
"""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from domain.errors import CisternError
from domain.printable import printable


class _Lazy(NamedTuple):
    """A command, or a group of commands, that is imported on first use."""

    module: str
    help: str


_LAZY: Final = {
    "volumes": _Lazy("volume_commands", "List, create, expand, mount and delete volumes."),
    "snapshots": _Lazy("snapshot_commands", "List, take, restore, clone and delete snapshots."),
    "jobs": _Lazy("job_commands", "List, show, watch, cancel and retry jobs."),
    "schedules": _Lazy("schedule_commands", "List, create, run, pause, resume and delete schedules."),
    "backends": _Lazy("overview_commands", "List storage backends, and who serves them."),
    "workers": _Lazy("overview_commands", "List workers, and what they run."),
    "attachments": _Lazy("attachment_commands", "List who uses which volume, and where."),
    "nodes": _Lazy("attachment_commands", "List the hosts that use volumes."),
    "projects": _Lazy("project_commands", "Create and list projects, and limit them."),
    "keys": _Lazy("key_commands", "Create, list, replace and revoke keys, in the database itself."),
    "audit": _Lazy("overview_commands", "List accepted changes. Needs a system key."),
    "csi": _Lazy("csi_command", "Serve volumes to Kubernetes on this host."),
    "docker-plugin": _Lazy("docker_plugin_command", "Serve volumes to Docker and Podman on this host."),
    "check": _Lazy("check_command", "Compare database, ledger and storage."),
    "doctor": _Lazy("doctor_command", "Examine settings, servers and workers, and say what is wrong."),
}
#: Limit for open requests after a stop signal: a client that no longer reads must not keep the API from ending.
GRACEFUL_SECONDS: Final = 5


class _LazyGroup(TyperGroup):
    """Imports commands on first use; for the list of all, it imports none."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"api.cli.{_LAZY[cmd_name].module}")
        found = typer.main.get_command(getattr(module, cmd_name.replace("-", "_")))
        found.name, found.help = cmd_name, found.help or _LAZY[cmd_name].help
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 (click's signature)
        own = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*own, *((name, one.help) for name, one in _LAZY.items())])


app = typer.Typer(
    cls=_LazyGroup,
    help="Cistern manages volumes and snapshots; every change is a job that is never lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing what prints help in boxes takes longer than a command
)


def _print_version(value: bool) -> None:  # noqa: FBT001 (called by typer)
    if value:
        import importlib.metadata

        typer.echo(importlib.metadata.version("cistern"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Cistern manages volumes and snapshots; every change is a job that is never lost."""


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
def node() -> None:
    """Attach volumes to this host until a signal ends it; needs root, and the settings of a worker."""
    from worker.node.main import main as run_node

    run_node()


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
    import asyncio

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


def main() -> None:
    """Run the command line. A CisternError is printed in one line; the exit status is 1, or what the error defines."""
    try:
        app()
    except CisternError as error:
        report(error)
        sys.exit(getattr(error, "exit_status", 1))


def report(error: CisternError) -> None:
    """Print an error in one line."""
    typer.echo(printable(f"cistern: {' '.join(str(error).split())}"), err=True)
