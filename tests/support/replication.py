"""Two PostgreSQL servers, of which one is the standby of the other."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.embedded.servers import DATABASE, OPTIONS, SUPERUSER, PostgreSQL


class ReplicatedServer(PostgreSQL):
    """A server that starts as a copy and standby of another one, if there is another one."""

    def __init__(self, servers: EmbeddedServers) -> None:
        super().__init__(servers._directory, durable=False)
        self.primary: ReplicatedServer | None = None

    @property
    def host(self) -> Path:
        """The directory of its socket."""
        return self._directory.run

    @property
    def socket(self) -> Path:
        return self.host / f".s.PGSQL.{OPTIONS['port']}"

    def copy(self, primary: "ReplicatedServer") -> None:
        """Start as a copy and standby of this primary; own data are deleted."""
        shutil.rmtree(self._data, ignore_errors=True)
        self.primary = primary
        self.start()

    def follow(self, primary: "ReplicatedServer") -> None:
        """Start as a standby with the data that it has, after it was stopped in good order."""
        self.primary = primary
        signal_file = self._data / "standby.signal"
        signal_file.touch()
        os.chown(signal_file, *self._owner())
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"\nprimary_conninfo = 'user={SUPERUSER} host={primary.host}'\n")
        self.start()

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        self._output_of(self._programs / "pg_ctl", "promote", "--wait", "-D", self._data)
        self.primary = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and all of its processes."""
        postmaster = psutil.Process(self.pid)
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):  # they end when the postmaster does
                process.send_signal(number)

    def freeze_replication(self) -> None:
        """Send nothing more to the standby, as a slow network does; it believes itself connected."""
        senders = [one for one in psutil.Process(self.pid).children() if "walsender" in " ".join(one.cmdline())]
        assert senders
        for sender in senders:
            sender.send_signal(signal.SIGSTOP)

    def wait_for_standby(self) -> None:
        """Let each commit wait for the standby from now on."""
        self._psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._psql("SELECT pg_reload_conf()")

    def _initialise(self) -> None:
        if self.primary is None:
            super()._initialise()
            return
        owner = self._owner()
        self._data.mkdir(mode=0o700)
        os.chown(self._data, *owner)
        source = ("--host", self.primary.host, "--username", SUPERUSER)
        options = ("--pgdata", self._data, "--write-recovery-conf", "--checkpoint=fast")
        self._output_of(self._programs / "pg_basebackup", *source, *options)


@contextmanager
def replicated_servers(
    *, synchronous: bool = True
) -> Iterator[tuple[EmbeddedServers, ReplicatedServer, ReplicatedServer]]:
    """A PostgreSQL and a Redis, and a standby of that PostgreSQL: servers, primary, standby."""
    with temporary_data_dir() as folder, temporary_data_dir() as other_folder:
        servers = EmbeddedServers(folder, durable=False)
        others = EmbeddedServers(other_folder, redis=False, durable=False)
        servers.postgres = primary = ReplicatedServer(servers)
        others.postgres = standby = ReplicatedServer(others)
        standby.primary = primary
        with servers, others:
            if synchronous:
                primary.wait_for_standby()
            yield servers, primary, standby


def by_hosts(*servers: ReplicatedServer) -> str:
    """Return the URL that names the hosts of these servers, of which the one that takes writes is wanted."""
    hosts = "&".join(f"host={server.host}" for server in servers)
    return f"postgresql://{SUPERUSER}@/{DATABASE}?{hosts}&target_session_attrs=read-write&connect_timeout=2"


def by_port(port: int) -> str:
    """Return the URL of the same database at one address of TCP."""
    return f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
