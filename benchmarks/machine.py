"""A description of the machine and the software versions, without host names."""

# ruff: noqa: INP001 - benchmarks are not a package

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import redis
from arena import Arena
from runtimes import RUNTIMES


async def machine(arena: Arena) -> list[str]:
    """Return the description as lines of Markdown."""
    postgres = await arena.cistern.fetchval("SHOW server_version")
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    newer = f" ({_version(arena.newer_redis_url)} for streaQ, which needs 7)" if arena.newer_redis_url else ""
    return [
        f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- {os.cpu_count()} cores ({_processor()}), {memory} of memory, {platform.system()} {platform.release()}",
        f"- Python {platform.python_version()}, PostgreSQL {postgres}, Redis {_version(arena.redis_url)}{newer}",
        f"- {', '.join(version for runtime in RUNTIMES if runtime.is_installed for version in runtime.versions())}",
    ]


def _version(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("server")
    return str(info["redis_version"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
