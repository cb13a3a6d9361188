"""A process ends on SIGTERM at any time, also while it starts as the first process of a container."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: Nothing listens there, so that the process waits.
NOWHERE = {"CISTERN_DATABASE_URL": "postgresql://127.0.0.1:1/none", "CISTERN_REDIS_URL": "redis://127.0.0.1:1"}
#: What the kernel does for the first process of a container: it ignores a signal that has no handler.
AS_FIRST = ("env", "--ignore-signal=TERM")
COMMANDS = {
    "a worker": ("-m", "worker"),
    "migrate --wait": ("-m", "api.cli", "migrate", "--wait", "60"),
    "serve": ("-m", "api.cli", "serve", "--port", "0"),
}


def handles_sigterm(pid: int) -> bool:
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_process_that_is_stopped_while_it_starts_ends(tmp_path: Path, command: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*AS_FIRST, sys.executable, *command],
        env=os.environ | NOWHERE | {"CISTERN_DATA_DIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not handles_sigterm(process.pid) and time.monotonic() < deadline:
            assert process.poll() is None
        process.terminate()
        process.wait(timeout=10)
    finally:
        process.kill()
        process.wait()
