"""`cistern up` as its user sees it: real processes, one line when it cannot be, and nothing left afterwards."""

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

from api.cli.demo import free_port
from domain.embedded import temporary_data_dir

PROJECT = Path(__file__).parents[2]
CISTERN = [sys.executable, "-c", "from api.cli.app import main; main()"]
PATIENCE = 60.0


@dataclass
class Up:
    """A running `cistern up`."""

    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    log: Path

    def family(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def worker(self) -> psutil.Process | None:
        found = [child for child in self.family() if command_of(child)[1:] == ["-m", "worker"]]
        return found[0] if found else None

    def said(self) -> str:
        return self.log.read_text()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def create_volume(self, name: str) -> str:
        client = httpx.Client(base_url=f"{self.url}/api/v1", headers={"Prefer": "wait=10"}, timeout=30)
        with client:
            job = client.post("/volumes", json={"name": name, "size": 2**20}).json()
            assert job["status"] == "succeeded", job
            return str(job["volume_id"])


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


@pytest.fixture(scope="module")
def standing() -> Iterator[Up]:
    """One without workers, for tests that leave it as it is."""
    with temporary_data_dir() as path, running(path, "--workers", "0") as up:
        yield up


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    return {**kept, "PYTHONPATH": str(PROJECT), **settings}


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def command_of(process: psutil.Process) -> list[str]:
    """What a process was started as; one that has ended meanwhile is nothing."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; an orphan that nobody has buried yet does not."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def running(data_dir: Path, *arguments: str) -> Iterator[Up]:
    """`cistern up`, ready; at the end nothing of it is left, whatever the test did."""
    port = free_port()
    command = [*CISTERN, "up", "--port", str(port), "--data-dir", str(data_dir), *arguments]
    log = data_dir / "up.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=data_dir, env=environment(), text=True) as process,
    ):
        up = Up(process, f"http://127.0.0.1:{port}", data_dir, log)
        family: list[psutil.Process] = []
        try:
            until(lambda: "Cistern is up" in up.said() or process.poll() is not None)
            assert process.poll() is None, up.said()
            family = up.family()
            yield up
        finally:
            process.terminate()
            process.wait(PATIENCE)
            for one in left(family):
                one.kill()


def refusal(data_dir: Path, *arguments: str, **settings: str) -> str:
    """Run a `cistern` that must refuse: what it says on stderr."""
    done = subprocess.run(
        [*CISTERN, *arguments], cwd=data_dir, env=environment(**settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_in_order(data_dir: Path, number: signal.Signals) -> None:
    with running(data_dir) as up:
        up.create_volume("one")
        family = up.family()

        code = up.end(number)

        assert code == 0, up.said()
        assert len(family) > 8  # itself, the API, two workers, Redis, PostgreSQL and its processes
        assert left(family) == []
        assert not (data_dir / "env").exists()


def test_volumes_are_still_there_the_next_day(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as first:
        volume = first.create_volume("kept")
        first.end(signal.SIGTERM)

    with running(data_dir, "--workers", "1") as second:
        found = httpx.get(f"{second.url}/api/v1/volumes/{volume}").json()

    assert (found["name"], found["state"], Path(found["path"]).stat().st_size) == ("kept", "available", 2**20)


def test_the_environment_file_lets_a_further_worker_join(standing: Up) -> None:
    lines = (standing.data_dir / "env").read_text().splitlines()
    settings = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    command = [sys.executable, "-m", "worker"]
    with subprocess.Popen(command, cwd=standing.data_dir, env=environment(**settings)) as worker:
        try:
            standing.create_volume("by-a-guest")
        finally:
            worker.terminate()

    assert set(settings) == {f"CISTERN_{name}" for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "BACKENDS")}


def test_a_worker_that_dies_is_started_again(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as up:
        until(up.worker)
        first = up.worker()
        assert first is not None

        first.kill()
        until(lambda: up.worker() not in {None, first})

        up.create_volume("after-the-fall")
        assert "worker.1 | ended (SIGKILL), starts again in 0.5 s" in up.said()


def test_after_kill_9_the_children_go_and_the_next_up_works(data_dir: Path) -> None:
    with running(data_dir, "--workers", "1") as up:
        own = [child for child in up.family() if command_of(child)[1:2] == ["-m"]]
        servers = [child for child in up.family() if child not in own]

        up.end(signal.SIGKILL)
        until(lambda: left(own) == [])

        with running(data_dir, "--workers", "1") as heir:
            heir.create_volume("after-the-fall")
        assert len(own) == 2
        assert left(servers) == []


def test_a_second_up_on_one_data_directory_says_so_and_the_first_stays(standing: Up) -> None:
    said = refusal(standing.data_dir, "up", "--data-dir", str(standing.data_dir), "--port", str(free_port()))

    owner = standing.process.pid
    assert (
        said == f"cistern: another cistern up (pid {owner}) uses this data directory: {standing.data_dir.resolve()}\n"
    )
    assert answers(standing.url)


def test_a_port_in_use_is_one_line(standing: Up, tmp_path: Path) -> None:
    port = standing.url.rpartition(":")[2]

    said = refusal(tmp_path, "up", "--port", port, "--data-dir", str(tmp_path / "another"))

    assert said == f"cistern: cannot listen on port {port} of 127.0.0.1: address already in use; choose with --port\n"
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_a_process_refuses_ends_everything_with_its_words(data_dir: Path) -> None:
    settings = {"CISTERN_BACKENDS": '{"local": "tape:/dev/nst0"}'}

    said = refusal(data_dir, "up", "--port", str(free_port()), "--data-dir", str(data_dir), **settings)

    assert re.fullmatch(r"cistern: [^\n]*tape[^\n]*\n", said)
