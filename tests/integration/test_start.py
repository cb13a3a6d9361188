"""Every process reports settings that cannot work in one line, before it opens anything."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROCESSES = {
    "serve": ("api.cli", "serve", "--port", "0"),
    "uvicorn": ("uvicorn", "api.main:app", "--port", "0"),
    "work": ("api.cli", "work"),
    "worker": ("worker",),
    "arq": ("arq", "worker.main.WorkerSettings"),
    "migrate": ("api.cli", "migrate", "--wait", "60"),
    "check": ("api.cli", "check"),
    "up": ("api.cli", "up"),
}
WRONG = {
    "CISTERN_REDIS_URL": ("redis://127.0.0.1/0?ssl_cert_reqs=none", "option ssl_cert_reqs"),
    "CISTERN_BACKENDS": ('{"local": "file:volumes"}', "the path must be absolute"),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_process_with_wrong_settings_ends_before_it_opens_anything(tmp_path: Path, process: str) -> None:
    """Each process meets one wrong setting, and every wrong setting meets the API, a worker and a command."""
    variable, (value, reason) = list(WRONG.items())[list(PROCESSES).index(process) % len(WRONG)]
    with socket.create_server(("127.0.0.1", 0)) as postgresql:
        postgresql.settimeout(0)
        servers = {
            "CISTERN_DATABASE_URL": f"postgresql://u@127.0.0.1:{postgresql.getsockname()[1]}/d",
            "CISTERN_REDIS_URL": "redis://127.0.0.1:1",
        }
        clean = {name: text for name, text in os.environ.items() if not name.startswith("CISTERN_")}
        ended = subprocess.run(
            [sys.executable, "-m", *PROCESSES[process]],
            cwd=tmp_path,
            env=clean | {"PYTHONPATH": str(ROOT)} | servers | {variable: value},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        with pytest.raises(BlockingIOError):
            postgresql.accept()

    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("INFO:", "ERROR:    Application"))]
    assert ended.returncode in (1, 2, 3)
    assert len(lines) == 1, ended.stderr
    assert f"{variable}: " in lines[0]
    assert reason in lines[0]
    assert not list(tmp_path.iterdir())
