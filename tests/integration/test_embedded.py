"""The embedded servers, started for real: the data they keep, the failures they survive, and that they end."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.embedded.servers import PostgreSQL, find_redis_server
from domain.errors import ConfigurationError
from tests.support.embedded import restart_redis_empty

OWNER = """
import json, sys, time
from pathlib import Path
from domain.embedded import EmbeddedServers
servers = EmbeddedServers(Path(sys.argv[1]), durable=False)
servers.start()
print(json.dumps(servers.pids), flush=True)
time.sleep(600)
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


@pytest.fixture(scope="module")
def own_servers() -> Iterator[EmbeddedServers]:
    with temporary_data_dir() as path, EmbeddedServers(path, durable=False) as running:
        yield running


def query(servers: EmbeddedServers, *statements: str) -> object:
    """Run the statements; return the scalar result of the last."""

    async def run() -> object:
        engine = create_async_engine(servers.database_url)
        async with engine.begin() as connection:
            results = [await connection.execute(sa.text(statement)) for statement in statements]
            scalar = results[-1].scalar() if results[-1].returns_rows else None
        await engine.dispose()
        return scalar

    return asyncio.run(run())


@contextmanager
def redis_of(servers: EmbeddedServers) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(servers.redis_url, decode_responses=True)
    with client:
        yield client


def processes_of(servers: EmbeddedServers) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in servers.pids.values()]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


@contextmanager
def killed_owner(data_dir: Path) -> Iterator[list[int]]:
    """Start servers in another process and kill it; yield the servers' pids."""
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as owner,
        ExitStack() as stack,
    ):
        stack.callback(owner.kill)
        assert owner.stdout is not None
        pids = list(json.loads(owner.stdout.readline()).values())
        for pid in pids:
            stack.callback(_kill, pid)
        owner.kill()
        owner.wait()
        yield pids


def is_running(pid: int) -> bool:
    """Return whether the process is running; a zombie is not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _kill(pid: int) -> None:
    if is_running(pid):
        os.kill(pid, signal.SIGKILL)


def test_data_survives_a_restart_and_stop_leaves_no_process(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")  # the user's settings for psql must not affect the server
    with EmbeddedServers(data_dir, durable=False) as first, redis_of(first) as client:
        query(first, "CREATE TABLE kept (it text)", "INSERT INTO kept VALUES ('yes')")
        client.set("kept", "yes")
        processes = processes_of(first)
    gone, alive = psutil.wait_procs(processes, timeout=0)

    with EmbeddedServers(data_dir, durable=False) as second, redis_of(second) as client:
        kept = (query(second, "SELECT it FROM kept"), client.get("kept"))

    assert (len(gone), alive) == (len(processes), [])
    assert len(processes) > 5
    assert kept == ("yes", "yes")


def test_second_start_on_the_same_directory_is_refused(own_servers: EmbeddedServers) -> None:
    with pytest.raises(ConfigurationError, match=rf"another cistern up \(pid {os.getpid()}\) uses this data directory"):
        EmbeddedServers(own_servers.data_dir).start()

    assert query(own_servers, "SELECT 1") == 1


def test_new_owner_replaces_the_servers_of_a_killed_one(data_dir: Path) -> None:
    with killed_owner(data_dir) as orphans:
        were_running = all(is_running(pid) for pid in orphans)

        with EmbeddedServers(data_dir, durable=False) as successor:
            pids = [*orphans, *successor.pids.values()]
            result = query(successor, "SELECT 1")

        assert were_running
        assert result == 1
        assert [pid for pid in pids if is_running(pid)] == []


def test_interrupted_first_start_does_not_break_the_second(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").touch()

    with EmbeddedServers(data_dir, redis=False, durable=False) as servers:
        assert query(servers, "SELECT 1") == 1


def test_data_directory_path_may_be_too_long_for_a_socket(data_dir: Path) -> None:
    with EmbeddedServers(data_dir / ("long" * 30) / "and, odd", durable=False) as servers, redis_of(servers) as client:
        results = (query(servers, "SELECT 1"), client.ping())
        sockets = Path(servers.redis_url.removeprefix("unix://")).parent

    assert results == (1, True)
    assert not sockets.exists()


def test_root_cannot_use_a_directory_that_only_root_can_reach(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    home = data_dir / "home"
    home.mkdir(mode=0o700)

    with pytest.raises(ConfigurationError, match=rf"cannot traverse {home} \(mode 0700\)"):
        EmbeddedServers(home / "cistern").start()

    assert (home.stat().st_mode & 0o777, list(home.iterdir())) == (0o700, [])


def test_programs_that_the_server_user_cannot_reach_are_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgreSQL, "_usable", lambda self, programs: False)

    with EmbeddedServers(data_dir, redis=False, durable=False) as servers:
        program = psutil.Process(servers.pids["postgresql"]).exe()

    assert program.startswith(str(servers.data_dir))


def test_only_the_requested_servers_are_started(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=False) as servers:
        assert list(servers.pids) == ["redis"]


def test_throwaway_servers_still_commit_synchronously(own_servers: EmbeddedServers) -> None:
    settings = [query(own_servers, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "max_connections")]

    assert settings == ["off", "on", "200"]


def test_killed_redis_restarts_at_its_address_with_its_data(own_servers: EmbeddedServers) -> None:
    with redis_of(own_servers) as client:
        client.set("kept", "yes")
        url = own_servers.redis_url

        own_servers.redis.stop(signal.SIGKILL)
        with pytest.raises(redis.ConnectionError):
            client.ping()
        own_servers.redis.start()

        assert (own_servers.redis_url, client.get("kept")) == (url, "yes")


def test_redis_can_be_restarted_empty(own_servers: EmbeddedServers) -> None:
    with redis_of(own_servers) as client:
        client.set("kept", "yes")

        restart_redis_empty(own_servers)

        assert client.dbsize() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_restarted_postgresql_keeps_committed_data(own_servers: EmbeddedServers, number: signal.Signals) -> None:
    query(own_servers, "CREATE TABLE IF NOT EXISTS kept (it text)", f"INSERT INTO kept VALUES ('{number.name}')")

    own_servers.postgres.stop(number)
    own_servers.postgres.start()

    assert query(own_servers, f"SELECT count(*) FROM kept WHERE it = '{number.name}'") == 1


def test_failed_server_start_is_explained_in_one_line_and_leaves_no_process(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, durable=False):
        pass
    (data_dir / "redis" / "appendonly.aof").write_text("nonsense")

    broken = EmbeddedServers(data_dir, durable=False)
    with pytest.raises(ConfigurationError, match=r"^redis did not start: [^\n]+$"):
        broken.start()

    assert broken.pids == {}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")


@as_root
def test_servers_of_root_run_as_the_same_unprivileged_user(data_dir: Path) -> None:
    (data_dir / "redis").mkdir()
    (data_dir / "redis" / "appendonly.aof").touch()  # of a version whose Redis ran as root
    with EmbeddedServers(data_dir, durable=False) as servers:
        users = {psutil.Process(pid).uids().effective for pid in servers.pids.values()}
        with redis_of(servers) as client:
            client.set("kept", "yes")
        restart_redis(servers)
        with redis_of(servers) as client:
            assert client.get("kept") in (b"yes", "yes")

    assert len(users) == 1
    assert 0 not in users


@as_root
def test_redis_alone_does_not_run_as_root_either(data_dir: Path) -> None:
    with EmbeddedServers(data_dir, postgres=False) as servers:
        assert psutil.Process(servers.pids["redis"]).uids().effective != 0


@as_root
def test_redis_that_its_user_cannot_reach_is_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_data_dir() as private:
        program = private / "redis-server"
        shutil.copy(find_redis_server(), program)
        private.chmod(0o700)
        monkeypatch.setattr("domain.embedded.servers.find_redis_server", lambda: program)
        with EmbeddedServers(data_dir, postgres=False) as servers:
            assert psutil.Process(servers.pids["redis"]).exe().startswith(str(servers.data_dir))


def restart_redis(servers: EmbeddedServers) -> None:
    servers.redis.stop()
    servers.redis.start()
