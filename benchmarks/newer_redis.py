"""A Redis of version 7, for the peer that needs its functions: the one on the PATH, if there is one."""

# ruff: noqa: INP001, S603 - no package, and the command is our own

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import redis

NEEDED: Final = 7


def find() -> str | None:
    """Find a server that is new enough."""
    for name in ("redis-server", "valkey-server"):
        program = shutil.which(name)
        if program is not None and _version(program) >= NEEDED:
            return program
    return None


def _version(program: str) -> int:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", told)
    return int(found[1]) if found else 0


@contextmanager
def newer_redis(folder: Path) -> Iterator[str | None]:
    """Have it as long as the block lasts, set as the private Redis of Cistern is; its address, or None."""
    program = find()
    if program is None:
        yield None
        return
    socket = folder / "newer.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(f"unix://{socket}")
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


def _await(url: str) -> None:
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with suppress(redis.RedisError), redis.Redis.from_url(url) as client:
            client.ping()
            return
        time.sleep(0.02)
    raise RuntimeError("the newer Redis does not answer")
