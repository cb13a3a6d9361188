"""PgBouncer in front of the PostgreSQL of the tests."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection, create_server

from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.embedded.servers import OPTIONS, SUPERUSER

#: The program; ``CISTERN_TEST_PGBOUNCER`` names another one.
PGBOUNCER = os.environ.get("CISTERN_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")
#: From this version on, prepared statements follow a connection from server to server.
TRACKS_STATEMENTS = (1, 21)


def version() -> tuple[int, int]:
    """Return the version of PgBouncer; (0, 0) if it is not installed."""
    if PGBOUNCER is None:
        return 0, 0
    said = subprocess.run([PGBOUNCER, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.findall(r"\d+", said)[:2]
    return int(major), int(minor)


@contextmanager
def pgbouncer(servers: EmbeddedServers, database_url: str, mode: str, **options: object) -> Iterator[str]:
    """Run PgBouncer in this mode; yield the URL of the database behind it."""
    assert PGBOUNCER is not None
    with create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": 60,
        **({"max_prepared_statements": 200} if version() >= TRACKS_STATEMENTS else {}),
        **options,
    }
    lines = ["[databases]", f"* = host={servers._directory.run} port={OPTIONS['port']} user={SUPERUSER}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    with temporary_data_dir() as folder:
        config = folder / "pgbouncer.ini"
        config.write_text("\n".join([*lines, ""]))
        identity = servers.postgres._identity()  # PgBouncer does not run as root either
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([PGBOUNCER, str(config)], stderr=log, stdout=log, **identity)
        try:
            _wait_until_it_listens(port, process, folder / "log")
            name = database_url.partition("?")[0].rpartition("/")[2]
            yield f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{name}?sslmode=disable"
        finally:
            process.kill()
            process.wait()


def _wait_until_it_listens(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(log.read_text())
