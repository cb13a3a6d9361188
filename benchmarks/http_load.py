"""Builds requests, runs the load generator, and returns its results."""

# ruff: noqa: INP001 - benchmarks are not a package

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from arena import cpu_seconds
from servers import BEARER, HERE, Server

CONNECTIONS: Final = 32


@dataclass(frozen=True)
class LoadResult:
    """The result of one load."""

    #: Responses per second.
    rate: float
    p50: float
    p99: float
    #: Wall-clock time of the first request, in seconds.
    began: float
    #: CPU time as shares of one core.
    server: float
    generator: float


async def run_load(server: Server, requests: Sequence[str], status: int, seconds: float, *, cycle: bool) -> LoadResult:
    """Send the requests for this many seconds, repeatedly if ``cycle``.

    Raises:
        RuntimeError: a response has another status than ``status``.
    """
    plan = {"port": server.port, "connections": CONNECTIONS, "requests": requests, "seconds": seconds, "cycle": cycle}
    used = cpu_seconds(server.process)
    generator = await asyncio.create_subprocess_exec(
        sys.executable, HERE / "load.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    output, _ = await generator.communicate(json.dumps(plan).encode())
    used = cpu_seconds(server.process) - used
    result: dict[str, Any] = json.loads(output)
    if set(result["statuses"]) != {str(status)}:
        raise RuntimeError(f"responses with status {result['statuses']}, not {status}")
    duration = result["requests"] / result["rate"]
    return LoadResult(
        rate=result["rate"],
        p50=result["p50"],
        p99=result["p99"],
        began=result["began"],
        server=used / duration,
        generator=result["cpu"] / duration,
    )


def get(path: str, headers: Mapping[str, str] | None = None) -> str:
    """Return a GET request as text."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *_lines(BEARER | dict(headers or {})), "", ""])


def post(path: str, body: Mapping[str, object]) -> str:
    """Return a POST request with a JSON body as text."""
    content = json.dumps(body)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *_lines(BEARER | headers), "", content])


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]
