"""The command ``cistern up``: private servers, a migrated database, the API and its workers, as one unit."""

import asyncio
import json
import os
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import typer

from api.cli.app import GRACEFUL_SECONDS
from api.cli.http import HttpClient, NoResponse
from api.cli.key_commands import create_first_key
from api.cli.key_file import KEY_FILE
from api.cli.processes import Child, Output, collected_stop_signals, stop_children
from domain.db.migrations import migrate
from domain.db.migrations.grants import Part, grant_to
from domain.embedded import EmbeddedServers
from domain.embedded.servers import APPLICATION_ROLE
from domain.errors import ConfigurationError
from domain.printable import printable
from domain.services import open_backends
from domain.settings import PREFIX, Settings, require_servers
from domain.tasks import cancel_and_wait, in_daemon_thread

#: The name of the node agent's process.
NODE = "node"
COLOURS = ("cyan", "green", "magenta", "yellow", "blue")
#: Seconds after which a signal or the end of a process is noticed.
WATCH_SECONDS = 0.1
#: Seconds until a stopping API is killed; it needs up to GRACEFUL_SECONDS by itself.
WEB_STOP_SECONDS = GRACEFUL_SECONDS + 5.0
#: Seconds after its drain time until a stopping worker is killed; after five it abandons hanging jobs by itself.
WORKER_STOP_MARGIN = 10.0

#: Is called with the processes by their names once the API is ready.
Work = Callable[[Mapping[str, Child]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The options of a stack."""

    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 2
    #: Whether a node agent runs, for volumes that are used on this machine.
    has_node: bool = False
    #: Further variables of all processes.
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def worker_names(self) -> list[str]:
        """Names of the workers' processes."""
        return [f"worker.{number}" for number in range(1, self.workers + 1)]

    def metrics_variable(self, number: int) -> dict[str, str]:
        """Return the variable that gives each process, by its number, a port of its own for its metrics."""
        if self.settings.metrics is None:
            return {}
        host, port = self.settings.metrics
        return {f"{PREFIX}METRICS": f"{host}:{port + number}"}

    @property
    def url(self) -> str:
        """URL of the API for clients on this machine."""
        wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)
        host = wildcards.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def up(stack: Stack) -> None:
    """Run the stack until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: a setting is invalid, or the port is in use.
        ProcessFailed: a process ended during start-up.
    """

    async def announce_and_wait(_: Mapping[str, Child]) -> None:
        typer.echo(f"Cistern is up. Dashboard: {stack.url}  API: {stack.url}/docs  Ctrl-C stops it.")
        if (key := stack.settings.data_dir / KEY_FILE).exists():
            typer.echo(
                f"A key with all rights is in {key}, to sign in and for: curl -H @{key} {stack.url}/api/v1/volumes"
            )
        await asyncio.Event().wait()

    run(stack, announce_and_wait, output=coloured_output(stack))


def run(stack: Stack, work: Work, *, output: Output) -> bool:
    """Start the stack, run ``work`` once the API is ready, and stop it. Return False if a signal ended it."""
    require_free_port(stack.host, stack.port)
    open_backends(stack.settings)  # report here what the processes would report
    with collected_stop_signals() as signals, migrated_servers(stack.settings, signals) as settings:
        if not signals:
            create_first_key(settings)
            with environment_file(settings) as environment:
                asyncio.run(_run_processes(stack, environment, work, signals=signals, output=output))
        return not signals


async def _migrate(url: str, signals: Sequence[int]) -> None:
    """Migrate the database, or give up at a signal: PostgreSQL may not answer, or another migration be running."""
    if signals:
        return
    migrating = asyncio.ensure_future(in_daemon_thread(partial(migrate, url)))
    while not signals and not migrating.done():
        await asyncio.wait([migrating], timeout=WATCH_SECONDS)
    if migrating.done():
        await migrating


@contextmanager
def migrated_servers(settings: Settings, signals: Sequence[int] = ()) -> Iterator[Settings]:
    """Start a private server for each one that the settings do not name, migrate, and yield settings that name both.

    At a signal the migration is given up.

    On the private PostgreSQL the API and the workers share a role of their own, which owns nothing.
    """
    embedded = EmbeddedServers(settings.data_dir, postgres=not settings.database_url, redis=not settings.redis_url)
    with embedded:
        urls = {
            "data_dir": embedded.data_dir,
            "database_url": settings.database_url or embedded.application_url,
            "redis_url": settings.redis_url or embedded.redis_url,
        }
        required = require_servers(settings.model_copy(update=urls))
        asyncio.run(_migrate(settings.database_url or embedded.database_url, signals))
        if not settings.database_url and not signals:
            grant_to(embedded.database_url, APPLICATION_ROLE, [*Part])
        yield required


@contextmanager
def environment_file(settings: Settings) -> Iterator[Mapping[str, str]]:
    """Write the variables that a further worker needs to DATA_DIR/env, and remove the file at the end."""
    variables = {
        f"{PREFIX}DATABASE_URL": settings.database_url,
        f"{PREFIX}REDIS_URL": settings.redis_url,
        f"{PREFIX}DATA_DIR": str(settings.data_dir),
        f"{PREFIX}BACKENDS": json.dumps(settings.backends),
    }
    path = settings.data_dir / "env"
    path.unlink(missing_ok=True)
    # A new file of ours alone: a URL may contain a password.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.writelines(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    try:
        yield {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    finally:
        path.unlink(missing_ok=True)


async def _run_processes(
    stack: Stack,
    environment: Mapping[str, str],
    work: Work,
    *,
    signals: Sequence[int],
    output: Output,
) -> None:
    def child(number: int, name: str, *arguments: str) -> Child:
        own = {**environment, **stack.metrics_variable(number), **stack.variables}
        return Child(name, [sys.executable, "-m", "api.cli", *arguments], environment=own, output=output)

    web = child(0, "web", "serve", "--host", stack.host, "--port", str(stack.port))
    workers = [child(number, name, "work") for number, name in enumerate(stack.worker_names, 1)]
    if stack.has_node:
        workers.append(child(stack.workers + 1, NODE, "node"))

    async def keep_alive_until_a_signal() -> None:
        while not signals:
            for process in (web, *workers):
                process.keep_alive()
            await asyncio.sleep(WATCH_SECONDS)

    async def work_when_ready() -> None:
        await wait_until_ready(stack.url)
        await work({process.name: process for process in (web, *workers)})

    tasks = [asyncio.create_task(keep_alive_until_a_signal()), asyncio.create_task(work_when_ready())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_and_wait(tasks)
        stop_children([web], WEB_STOP_SECONDS, signals)  # first: requests that wait for a job need the workers
        stop_children(workers, stack.settings.drain_seconds + WORKER_STOP_MARGIN, signals)


async def wait_until_ready(url: str) -> None:
    """Poll the readiness probe of the API until it succeeds."""
    client = HttpClient(url, {}, timeout=5)
    while True:
        with suppress(NoResponse):
            if (await in_daemon_thread(partial(client.request, "GET", "/readyz"))).is_success:
                return
        await asyncio.sleep(0.05)


def free_port() -> int:
    """Return a TCP port that is free now, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(host: str, port: int) -> None:
    """Check that the port is free, before anything is started.

    Raises:
        ConfigurationError: it is not.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"cannot listen on port {port} of {host}: {reason}; choose with --port") from error


def coloured_output(stack: Stack) -> Output:
    """Return an output that prefixes each line with the name of its process, in a colour per process."""
    names = ["web", *stack.worker_names]
    width = max(map(len, names))
    prefixes = {
        name: typer.style(f"{name:<{width}} |", fg=colour) for name, colour in zip(names, cycle(COLOURS), strict=False)
    }

    def output(name: str, line: str) -> None:
        with suppress(OSError):  # the terminal may close before the processes end
            typer.echo(f"{prefixes[name]} {printable(line)}")

    return output
