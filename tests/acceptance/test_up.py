"""`cistern up` with real processes: start, restart, stop, errors in one line, and nothing left afterwards."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from api.cli.stack import free_port
from domain.embedded import temporary_data_dir
from tests.support.output_search import require_none_in_command_lines, require_none_in_file

PROJECT = Path(__file__).parents[2]
CISTERN = [sys.executable, "-m", "api.cli"]
TIMEOUT_SECONDS = 60.0


@dataclass
class Up:
    """A running `cistern up`."""

    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    log: Path

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def worker(self) -> psutil.Process | None:
        workers = [child for child in self.processes() if command_of(child)[1:] == ["-m", "api.cli", "work"]]
        return workers[0] if workers else None

    def output(self) -> str:
        return self.log.read_text()

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_SECONDS)

    def headers(self) -> dict[str, str]:
        """Return the header with the key that the stack has written."""
        name, _, value = (self.data_dir / "key").read_text().strip().partition(": ")
        return {name: value}

    def create_volume(self, name: str) -> str:
        headers = {"Prefer": "wait=10"} | self.headers()
        client = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=30)
        with client:
            job = client.post("/volumes", json={"name": name, "size": 2**20}).json()
            assert job["status"] == "succeeded", job
            return str(job["volume_id"])


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


@pytest.fixture(scope="module")
def idle_stack() -> Iterator[Up]:
    """A `cistern up` without workers, for tests that do not change it."""
    with temporary_data_dir() as path, running(path, "--workers", "0") as up:
        yield up


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    return {**inherited, "PYTHONPATH": str(PROJECT), **settings}


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def running_among(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that still run; zombies do not."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def running(data_dir: Path, *arguments: str) -> Iterator[Up]:
    """Run `cistern up` until it is ready, and end all of its processes afterwards."""
    port = free_port()
    command = [*CISTERN, "up", "--port", str(port), "--data-dir", str(data_dir), *arguments]
    log = data_dir / "up.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=data_dir, env=environment(), text=True) as process,
    ):
        up = Up(process, f"http://127.0.0.1:{port}", data_dir, log)
        processes: list[psutil.Process] = []
        try:
            until(lambda: "Cistern is up" in up.output() or process.poll() is not None)
            assert process.poll() is None, up.output()
            processes = up.processes()
            yield up
            require_none_in_command_lines()
        finally:
            process.terminate()
            process.wait(TIMEOUT_SECONDS)
            for one in running_among(processes):
                one.kill()
    require_none_in_file(log)


def error_output(data_dir: Path, *arguments: str, **settings: str) -> str:
    """Run a `cistern` command that must fail, and return its output on stderr."""
    completed = subprocess.run(
        [*CISTERN, *arguments], cwd=data_dir, env=environment(**settings), capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1, completed
    return completed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_all_processes_in_order(data_dir: Path, number: signal.Signals) -> None:
    with running(data_dir) as up:
        up.create_volume("one")
        processes = up.processes()

        code = up.stop(number)

        assert code == 0, up.output()
        assert len(processes) > 8  # itself, the API, two workers, Redis, PostgreSQL and its processes
        assert running_among(processes) == []
        assert not (data_dir / "env").exists()


@pytest.mark.slow
def test_volumes_persist_across_restarts(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as first:
        volume = first.create_volume("kept")
        first.stop(signal.SIGTERM)

    with running(data_dir, "--workers", "1") as second:
        found = httpx.get(f"{second.url}/api/v1/volumes/{volume}", headers=second.headers()).json()

    assert (found["name"], found["state"], Path(found["path"]).stat().st_size) == ("kept", "available", 2**20)


def test_environment_file_lets_another_worker_join(idle_stack: Up) -> None:
    lines = (idle_stack.data_dir / "env").read_text().splitlines()
    settings = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    command = [sys.executable, "-m", "worker"]
    with subprocess.Popen(command, cwd=idle_stack.data_dir, env=environment(**settings)) as worker:
        try:
            idle_stack.create_volume("by-another-worker")
        finally:
            worker.terminate()

    assert set(settings) == {f"CISTERN_{name}" for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "BACKENDS")}


@pytest.mark.slow
def test_killed_worker_is_restarted(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as up:
        until(up.worker)
        first = up.worker()
        assert first is not None

        first.kill()
        until(lambda: up.worker() not in {None, first})

        up.create_volume("after-the-kill")
        assert "worker.1 | ended (SIGKILL), restarting in 0.5 s" in up.output()


@pytest.mark.slow
def test_children_end_after_kill_9_and_the_next_up_works(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as up:
        children = [child for child in up.processes()[1:] if command_of(child)[1:3] == ["-m", "api.cli"]]
        servers = [process for process in up.processes() if process not in children]

        up.stop(signal.SIGKILL)
        until(lambda: running_among(children) == [])

        with running(data_dir, "--workers", "1") as second:
            second.create_volume("after-the-kill")
        assert len(children) == 2
        assert running_among(servers) == []


def test_second_up_on_one_data_directory_is_rejected(idle_stack: Up) -> None:
    stderr = error_output(idle_stack.data_dir, "up", "--data-dir", str(idle_stack.data_dir), "--port", str(free_port()))

    owner = idle_stack.process.pid
    assert (
        stderr
        == f"cistern: another cistern up (pid {owner}) uses this data directory: {idle_stack.data_dir.resolve()}\n"
    )
    assert is_ready(idle_stack.url)


def test_port_in_use_is_reported_in_one_line(idle_stack: Up, tmp_path: Path) -> None:
    port = idle_stack.url.rpartition(":")[2]

    stderr = error_output(tmp_path, "up", "--port", port, "--data-dir", str(tmp_path / "another"))

    assert stderr == f"cistern: cannot listen on port {port} of 127.0.0.1: address already in use; choose with --port\n"
    assert list(tmp_path.iterdir()) == []


def test_setting_rejected_by_a_process_stops_everything(data_dir: Path) -> None:
    settings = {"CISTERN_BACKENDS": '{"local": "tape:/dev/nst0"}'}

    stderr = error_output(data_dir, "up", "--port", str(free_port()), "--data-dir", str(data_dir), **settings)

    assert re.fullmatch(r"cistern: [^\n]*tape[^\n]*\n", stderr)
