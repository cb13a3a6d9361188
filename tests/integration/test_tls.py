"""TLS to PostgreSQL, Redis, the API and receivers of webhooks, with our own authority and client certificates."""

import asyncio
import http.server
import os
import pwd
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from api.cli.client import ApiCallFailed, ApiUnreachable, open_api
from api.cli.stack import free_port
from domain.db.database import Database
from domain.db.migrations import migrate
from domain.embedded import temporary_data_dir
from domain.errors import ConfigurationError, DatabaseUnavailable
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue, QueueUnavailable
from domain.jobs.webhooks.sender import Sender, new_secret
from domain.jobs.webhooks.target import DeliveryFailed
from domain.services import open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended
from tests.support.receiver import receiving
from tests.support.worker import supervised

#: Debian's PostgreSQL and Redis: those in the Python packages have no TLS. Debian's Redis is one program under several
#: names, and redis-tools has it too.
POSTGRESQL = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
REDIS = shutil.which("redis-server") or shutil.which("redis-check-rdb")
needs_postgresql = pytest.mark.skipif(POSTGRESQL is None, reason="no PostgreSQL of Debian is installed")
needs_redis = pytest.mark.skipif(REDIS is None, reason="no Redis of Debian is installed")


class Authority:
    """A certificate authority, with a certificate for 127.0.0.1 and one for the client ``app``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        key = folder / "ca.key"
        request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", self.ca)
        _openssl(*request, "-subj", "/CN=Our CA", "-days", "2", "-addext", "keyUsage=critical,keyCertSign")
        for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("app", "extendedKeyUsage=clientAuth")):
            one = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / f"{name}.key", "-subj", f"/CN={name}")
            signed_by = ("-x509", "-days", "2", "-CA", self.ca, "-CAkey", key, "-addext", extension)
            _openssl(*one, *signed_by, "-addext", "basicConstraints=critical,CA:FALSE", "-out", folder / f"{name}.pem")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with temporary_data_dir() as folder:
        yield Authority(folder)


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority(tmp_path_factory.mktemp("other")).ca


@contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, command
            assert time.monotonic() < deadline, command
            try:
                create_connection(("127.0.0.1", port)).close()
            except OSError:
                time.sleep(0.05)
            else:
                break
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def database_by_tls(authority: Authority) -> Iterator[str]:
    """The URL of a PostgreSQL that asks for a client certificate, without the options of TLS."""
    assert POSTGRESQL is not None
    account = pwd.getpwnam("postgres")  # Debian's package has made it
    identity: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    if os.geteuid() != 0:
        identity = {}
    port, data = free_port(), authority.folder / "data"
    data.mkdir(mode=0o700)
    own = [data, *(shutil.copy(authority.folder / name, data.parent / f"pg-{name}") for name in ("server.key",))]
    for path in own:
        Path(path).chmod(0o700 if Path(path).is_dir() else 0o600)
        if identity:
            os.chown(path, account.pw_uid, account.pw_gid)
    initdb = [str(POSTGRESQL / "initdb"), "-D", str(data), "-U", "app", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **identity)
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust clientcert=verify-full\n")
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
        "ssl": "on",
        "ssl_ca_file": authority.ca,
        "ssl_cert_file": authority.folder / "server.pem",
        "ssl_key_file": data.parent / "pg-server.key",
    }
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with running([str(POSTGRESQL / "postgres"), "-D", str(data), *arguments], port, cwd="/", **identity):
        yield f"postgresql://app@127.0.0.1:{port}/postgres"


@pytest.fixture(scope="module")
def redis_by_tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that asks for a client certificate, without the options of TLS."""
    assert REDIS is not None
    port, folder = free_port(), authority.folder
    files = ("--tls-ca-cert-file", folder / "ca.pem", "--tls-cert-file", folder / "server.pem")
    options = (*files, "--tls-key-file", folder / "server.key", "--port", 0, "--tls-port", port, "--save", "")
    own_folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", *map(str, options), "--bind", "127.0.0.1", "--dir", str(own_folder)]
    with running(command, port, executable=REDIS):
        yield f"rediss://127.0.0.1:{port}/0"


def of_database(ca: Path, authority: Authority) -> str:
    app = authority.folder / "app"
    return f"?sslmode=verify-full&sslrootcert={ca}&sslcert={app}.pem&sslkey={app}.key"


def of_redis(ca: Path, authority: Authority) -> str:
    app = authority.folder / "app"
    return f"?ssl_ca_certs={ca}&ssl_certfile={app}.pem&ssl_keyfile={app}.key"


@needs_postgresql
@needs_redis
async def test_job_runs_over_tls(
    settings: Settings, authority: Authority, database_by_tls: str, redis_by_tls: str
) -> None:
    changes = {
        "database_url": database_by_tls + of_database(authority.ca, authority),
        "redis_url": redis_by_tls + of_redis(authority.ca, authority),
    }
    await asyncio.to_thread(migrate, changes["database_url"])
    async with (
        open_services(settings.model_copy(update=changes), adopt=True) as services,
        supervised(services.settings),
    ):
        await services.queue.ping()
        job = await services.volumes.request_create(NewVolume("by-tls", MIB))
        assert (await ended(services, job.id)).status == "succeeded"


@needs_postgresql
async def test_postgresql_of_another_authority_is_not_trusted(
    authority: Authority, other_ca: Path, database_by_tls: str
) -> None:
    database = Database(database_by_tls + of_database(other_ca, authority))
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        await database.ping()
    await database.close()


@needs_redis
async def test_redis_of_another_authority_is_not_trusted(
    authority: Authority, other_ca: Path, redis_by_tls: str
) -> None:
    queue = JobQueue.open(redis_by_tls + of_redis(other_ca, authority))
    with pytest.raises(QueueUnavailable, match="certificate verify failed"):
        await queue.ping()
    await queue.close()


@needs_redis
async def test_redis_without_tls_in_its_url_is_an_outage(redis_by_tls: str) -> None:
    queue = JobQueue.open(redis_by_tls.replace("rediss://", "redis://"))
    for _ in range(20):
        with pytest.raises(QueueUnavailable):
            await queue.ping()
        await queue.dispatch([JobMessage(uuid7(), 0)])
    await queue.close()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"])
@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel"])
def test_file_for_redis_that_is_not_there_is_refused(scheme: str, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CISTERN_REDIS_URL: {option}: there is no file /nowhere"):
        JobQueue.open(f"{scheme}://h/main?{option}=/nowhere".replace("main", "main" if "+" in scheme else "0"))


@pytest.fixture
def api_by_tls(authority: Authority) -> Iterator[str]:
    """The address of an API over https that answers every request with one object."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"id": "1"}')

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("variable", ["CISTERN_CA_FILE", "SSL_CERT_FILE"])
def test_command_line_trusts_the_authority_that_is_named(
    authority: Authority, api_by_tls: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with pytest.raises(ApiUnreachable, match="certificate verify failed"):
        open_api(api_by_tls).get("/jobs/1")
    monkeypatch.setenv(variable, str(authority.ca))
    assert open_api(api_by_tls).get("/jobs/1") == {"id": "1"}


def test_authority_of_the_command_line_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_CA_FILE", "/nowhere")
    with pytest.raises(ApiCallFailed, match="CISTERN_CA_FILE: No such file or directory: /nowhere"):
        open_api("https://h")


async def test_webhook_goes_to_a_receiver_with_a_certificate_for_its_name_only(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is the same: it is the name in the URL that the certificate must have."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    async with receiving(tls=context) as receiver:
        sender = Sender(("127.0.0.1", "localhost"))
        assert await sender.send(receiver.url, new_secret(), "id", {}) == 204
        with pytest.raises(DeliveryFailed, match="could not be reached"):
            await sender.send(receiver.url.replace("127.0.0.1", "localhost"), new_secret(), "id", {})

    assert len(receiver.requests) == 1


async def test_webhook_does_not_go_to_a_receiver_of_an_unknown_authority(authority: Authority) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    async with receiving(tls=context) as receiver:
        with pytest.raises(DeliveryFailed, match="could not be reached"):
            await Sender(("127.0.0.1",)).send(receiver.url, new_secret(), "id", {})

    assert receiver.requests == []
