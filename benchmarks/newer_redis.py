"""A Redis 7 or Valkey from the PATH, if there is one, for the peer that needs Redis functions."""

# ruff: noqa: INP001, S603 - not a package, and the command is our own

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import redis

MIN_VERSION: Final = 7


def find() -> str | None:
    """Return the path of a server that is new enough, or None."""
    for name in ("redis-server", "valkey-server"):
        program = shutil.which(name)
        if program is not None and _version(program) >= MIN_VERSION:
            return program
    return None


def _version(program: str) -> int:
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", output)
    return int(version[1]) if version else 0


@contextmanager
def newer_redis(folder: Path) -> Iterator[str | None]:
    """Run it for the duration of the block, with the settings of Cistern's private Redis; yield its URL, or None."""
    program = find()
    if program is None:
        yield None
        return
    socket = folder / "newer.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_ready(f"unix://{socket}")
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(redis.RedisError), redis.Redis.from_url(url) as client:
            client.ping()
            return
        time.sleep(0.02)
    raise RuntimeError("the newer Redis does not respond")
