"""`cistern demo` runs all of its steps and removes everything afterwards, also when it is interrupted."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api.cli.demo_host import obstacle
from domain.embedded import temporary_data_dir
from tests.integration.host_builders import devices_in
from tests.support.output_search import require_none_in_command_lines

PROJECT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "api.cli", "demo"]
TIMEOUT_SECONDS = 120.0


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    """The directory for temporary files of the demo; processes that still use it at the end are killed."""
    with temporary_data_dir() as path:
        yield path
        for process in processes_using(path):
            process.kill()


def environment(temp_dir: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "TMPDIR": str(temp_dir)}


def processes_using(temp_dir: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["environ", "status"])
        if (process.info["environ"] or {}).get("TMPDIR") == str(temp_dir)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def assert_nothing_is_left(temp_dir: Path) -> None:
    assert processes_using(temp_dir) == []
    assert list(temp_dir.iterdir()) == []
    assert str(temp_dir) not in Path("/proc/self/mountinfo").read_text()
    assert devices_in(temp_dir) == []


def can_mount(temp_dir: Path) -> bool:
    return obstacle(temp_dir) is None


@pytest.mark.slow
def test_demo_runs_all_steps_and_leaves_nothing(temp_dir: Path) -> None:
    command = [*DEMO, "--volumes", "20"]

    completed = subprocess.run(
        command,
        cwd=temp_dir,
        env=environment(temp_dir),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )

    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stdout.count("20/20") == 8
    assert "20 volumes, 500 MiB: every file has its size" in completed.stdout
    assert_nothing_is_left(temp_dir)


@pytest.mark.slow
def test_demo_shows_a_volume_in_use_or_says_in_one_line_what_is_missing(temp_dir: Path) -> None:
    completed = subprocess.run(
        [*DEMO, "--volumes", "1"],
        cwd=temp_dir,
        env=environment(temp_dir) | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )

    assert completed.returncode == 0, completed.stdout + completed.stderr
    last = completed.stdout.splitlines()[-1]
    if can_mount(temp_dir):
        assert "every acknowledged record is there" in last
        assert "df has grown from 256 to 416 MiB" in last
    else:
        assert last.startswith("Not shown, for it needs ")
    assert_nothing_is_left(temp_dir)


@pytest.mark.slow
def test_demo_that_is_stopped_while_a_process_writes_to_a_volume_leaves_nothing(temp_dir: Path) -> None:
    if not can_mount(temp_dir):
        pytest.skip("needs root, loop devices and the tools of XFS")
    with subprocess.Popen([*DEMO, "--volumes", "1"], cwd=temp_dir, env=environment(temp_dir)) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not list(temp_dir.glob("*/mounts/*/records")):
                assert process.poll() is None
                assert time.monotonic() < deadline, "no record was written"
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_SECONDS) == 1
        finally:
            process.kill()

    assert_nothing_is_left(temp_dir)


@pytest.mark.slow
def test_stopped_demo_fails_and_leaves_nothing(temp_dir: Path) -> None:
    command = [*DEMO, "--volumes", "2000"]
    with subprocess.Popen(
        command, cwd=temp_dir, env=environment(temp_dir), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not list(temp_dir.glob("*/volumes/*")):
                assert process.poll() is None
                assert time.monotonic() < deadline, "no volume was created"
                time.sleep(0.02)

            require_none_in_command_lines()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()

    assert (process.returncode, stderr) == (1, "cistern: the demo was stopped before its end\n")
    assert_nothing_is_left(temp_dir)
