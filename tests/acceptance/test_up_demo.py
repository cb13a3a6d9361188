"""`cistern demo` shows the main job for real and cleans up after itself, also when it is stopped half-way."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from domain.embedded import temporary_data_dir

PROJECT = Path(__file__).parents[2]
DEMO = [sys.executable, "-c", "from api.cli.app import main; main()", "demo"]
PATIENCE = 120.0


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo finds room for its data; whatever still runs with it at the end is ended."""
    with temporary_data_dir() as path:
        yield path
        for process in running_in(path):
            process.kill()


def environment(place: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "TMPDIR": str(place)}


def running_in(place: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["environ", "status"])
    return [
        process
        for process in found
        if (process.info["environ"] or {}).get("TMPDIR") == str(place)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_the_demo_creates_snapshots_expands_restores_compares_and_leaves_nothing(place: Path) -> None:
    command = [*DEMO, "--volumes", "20"]

    done = subprocess.run(
        command, cwd=place, env=environment(place), capture_output=True, text=True, check=False, timeout=PATIENCE
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("20/20") == 8
    assert "20 volumes, 500 MiB: every size was measured" in done.stdout
    assert running_in(place) == []
    assert list(place.iterdir()) == []


def test_a_demo_that_is_stopped_leaves_nothing_and_does_not_claim_success(place: Path) -> None:
    command = [*DEMO, "--volumes", "2000"]
    with subprocess.Popen(command, cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not list(place.glob("*/volumes/*")):
                assert process.poll() is None
                assert time.monotonic() < end, "no volume came"
                time.sleep(0.02)

            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()

    assert (process.returncode, said) == (1, "cistern: the demo was stopped before its end\n")
    assert running_in(place) == []
    assert list(place.iterdir()) == []
