"""`cistern up`: private servers, a migrated database, the API and its workers, as one thing that starts and stops."""

import asyncio
import json
import os
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import typer

from api.cli.processes import Child, Output, StopSignals, either
from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers
from domain.errors import ConfigurationError
from domain.settings import PREFIX, Settings, load_settings, require_servers

COLOURS = ("cyan", "green", "magenta", "yellow", "blue")
WEB_STOP_SECONDS = 10.0  # seconds; open requests get half of it
MARGIN = 10.0  # seconds a worker has beyond its own drain time; after five it leaves what hangs by itself


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What shall run, and where."""

    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 2

    @property
    def url(self) -> str:
        """Where the API answers, seen from this machine."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)
        host = everywhere.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def up(stack: Stack) -> None:
    """Run everything until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: it cannot start as it is set up.
        ProcessFailed: a process ended while it was starting.
    """

    async def announce_and_stay() -> None:
        typer.echo(f"Cistern is up at {stack.url}, its documentation at {stack.url}/docs. Ctrl-C stops it.")
        await asyncio.Event().wait()

    run(stack, announce_and_stay, output=coloured_output(stack))


def run(stack: Stack, work: Callable[[], Awaitable[None]], *, output: Output) -> bool:
    """Start everything, do ``work`` once the API is ready, stop everything. False when a signal came before the end."""
    require_free_port(stack.host, stack.port)
    with StopSignals() as signals, servers(stack.settings) as settings:
        if not signals.count:
            migrate(settings.database_url)
        with environment_file(settings) as environment:
            asyncio.run(_serve(stack, environment, work, signals=signals, output=output))
        return signals.count == 0


@contextmanager
def servers(settings: Settings) -> Iterator[Settings]:
    """Run a private server for each one that the settings do not name; yields settings that name both."""
    private = EmbeddedServers(settings.data_dir, postgres=not settings.database_url, redis=not settings.redis_url)
    with private:
        found = {
            "data_dir": private.data_dir,
            "database_url": settings.database_url or private.database_url,
            "redis_url": settings.redis_url or private.redis_url,
        }
        yield require_servers(settings.model_copy(update=found))


@contextmanager
def environment_file(settings: Settings) -> Iterator[Mapping[str, str]]:
    """Write down what a further worker needs, in DATA_DIR/env, for as long as it is true."""
    variables = {
        f"{PREFIX}DATABASE_URL": settings.database_url,
        f"{PREFIX}REDIS_URL": settings.redis_url,
        f"{PREFIX}DATA_DIR": str(settings.data_dir),
        f"{PREFIX}BACKENDS": json.dumps(settings.backends),
    }
    path = settings.data_dir / "env"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)  # an address may hold a password
    path.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))
    try:
        yield {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
    finally:
        path.unlink(missing_ok=True)


async def _serve(
    stack: Stack,
    environment: Mapping[str, str],
    work: Callable[[], Awaitable[None]],
    *,
    signals: StopSignals,
    output: Output,
) -> None:
    web, workers = _children(stack, environment, output)
    lives = [asyncio.create_task(child.keep_alive()) for child in (web, *workers)]

    async def work_when_ready() -> None:
        await ready(stack.url)
        await work()

    async def hurry() -> None:
        await signals.reach(2)

    try:
        await either(*(asyncio.shield(life) for life in lives), work_when_ready(), signals.reach(1))
    finally:
        await web.stop(WEB_STOP_SECONDS, hurry)  # first: requests that wait for a job still need the workers
        patience = stack.settings.drain_seconds + MARGIN
        await asyncio.gather(*(worker.stop(patience, hurry) for worker in workers))
        await asyncio.gather(*lives, return_exceptions=True)


def _children(stack: Stack, environment: Mapping[str, str], output: Output) -> tuple[Child, list[Child]]:
    uvicorn = [sys.executable, "-m", "uvicorn", "api.main:app", "--host", stack.host, "--port", str(stack.port)]
    graceful = ["--no-access-log", "--timeout-graceful-shutdown", str(int(WEB_STOP_SECONDS / 2))]
    web = Child("web", [*uvicorn, *graceful], environment=environment, output=output)
    worker = [sys.executable, "-m", "worker"]
    names = [f"worker.{number}" for number in range(1, stack.workers + 1)]
    return web, [Child(name, worker, environment=environment, output=output) for name in names]


async def ready(url: str) -> None:
    """Wait until the API says that it can work."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as client:
        while True:
            with suppress(httpx.TransportError):
                if (await client.get("/readyz")).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.05)


def require_free_port(host: str, port: int) -> None:
    """Look whether the port can be had, before anything is started.

    Raises:
        ConfigurationError: it cannot.
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
    """Print each process's lines behind its name, in a colour of its own where there are colours."""
    names = ["web", *(f"worker.{number}" for number in range(1, stack.workers + 1))]
    width = max(map(len, names))
    prefixes = {
        name: typer.style(f"{name:<{width}} |", fg=COLOURS[index % len(COLOURS)]) for index, name in enumerate(names)
    }

    def output(name: str, line: str) -> None:
        with suppress(OSError):  # the terminal may be gone before the processes are
            typer.echo(f"{prefixes[name]} {line}")

    return output


def stack_from_options(*, host: str, port: int, workers: int, data_dir: Path | None) -> Stack:
    """Read the settings, with what the command line says."""
    settings = load_settings() if data_dir is None else load_settings(data_dir=data_dir)
    return Stack(settings=settings, host=host, port=port, workers=workers)
