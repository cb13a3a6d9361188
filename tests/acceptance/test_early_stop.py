"""A process ends on SIGTERM at any time, also while it starts as the first process of a container."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cli.stack import free_port

COMMANDS = {
    "a worker": ("-m", "worker"),
    "migrate --wait": ("-m", "api.cli", "migrate", "--wait", "60"),
    "serve": ("-m", "api.cli", "serve", "--port", "0"),
    "up": ("-m", "api.cli", "up", "--port", "FREE_PORT"),
}
#: The first process of a PID namespace, as in a container: it ignores a signal that has no handler. It has no mount
#: namespace of its own: that would hold copies of the volumes that other tests have mounted, and keep them in use.
AS_FIRST = ("unshare", "--fork", "--pid", "--kill-child")
SECONDS = 5.0


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.fixture
def environment(silent_server: socket.socket, tmp_path: Path) -> dict[str, str]:
    """Settings of a process that cannot start: its PostgreSQL and its Redis do not answer."""
    address = f"127.0.0.1:{silent_server.getsockname()[1]}"
    urls = {"CISTERN_DATABASE_URL": f"postgresql://{address}/none", "CISTERN_REDIS_URL": f"redis://{address}"}
    return os.environ | urls | {"CISTERN_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture(params=COMMANDS.values(), ids=list(COMMANDS))
def first_process(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs as the first process of a PID namespace; the process here is its parent."""
    refusal = why_no_namespace()
    if refusal:
        pytest.skip(f"a PID namespace cannot be made: {refusal}")
    command = [
        *AS_FIRST,
        sys.executable,
        *(str(free_port()) if word == "FREE_PORT" else word for word in request.param),
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def why_no_namespace() -> str:
    if shutil.which("unshare") is None:
        return "there is no command unshare"
    tried = subprocess.run([*AS_FIRST, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def handles_sigterm(pid: int) -> bool:
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def child_of(process: subprocess.Popen[bytes]) -> int:
    """Return the process id of the first process in the namespace, once it runs Python with a handler of SIGTERM."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it has ended"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and handles_sigterm(int(children[0])):
            return int(children[0])
        time.sleep(0.002)
    raise AssertionError("it does not handle SIGTERM")


def seconds_to_end(process: subprocess.Popen[bytes], pid: int) -> float:
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    process.wait(timeout=30)
    return time.monotonic() - began


def test_first_process_of_a_container_that_still_imports_ends_on_sigterm(
    first_process: subprocess.Popen[bytes],
) -> None:
    assert seconds_to_end(first_process, child_of(first_process)) < SECONDS


def test_first_process_of_a_container_that_waits_for_a_silent_server_ends_on_sigterm(
    first_process: subprocess.Popen[bytes], silent_server: socket.socket
) -> None:
    connection, _ = silent_server.accept()
    with connection:
        assert seconds_to_end(first_process, child_of(first_process)) < 0.8 * SECONDS, "it waited for the server"


@pytest.mark.parametrize("module", ["worker.__main__", "api.cli.__main__"])
def test_handler_of_sigterm_is_there_before_anything_large_is_imported(module: str) -> None:
    """Until then the signal is lost."""
    code = f"""
import signal, sys
def handler(number, handle):
    print(*sys.modules)
    sys.exit()
signal.signal = handler
import {module}
"""
    imported, always = modules(code), modules("import sys; print(*sys.modules)")

    packages = {module.rpartition(".")[0], module.partition(".")[0]}
    assert imported - always <= {"signal", "domain", "domain.early_stop", module} | packages


def modules(code: str) -> set[str]:
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(completed.stdout.split())
