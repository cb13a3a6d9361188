"""Asking an API much at once: the requests, the load generator, and what came of it."""

# ruff: noqa: INP001 - benchmarks are no package

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from arena import HERE, cpu_seconds
from stage import Server

CONNECTIONS: Final = 32


@dataclass(frozen=True)
class Answers:
    """What a load came to."""

    #: Answers in a second.
    rate: float
    p50: float
    p99: float
    #: When the first request was sent, in seconds of the clock on the wall.
    began: float
    #: Shares of one core.
    server: float
    generator: float


async def ask(server: Server, requests: Sequence[str], status: int, seconds: float, *, again: bool) -> Answers:
    """Have requests sent for so long, over and over if ``again``; all must be answered by ``status``."""
    plan = {"port": server.port, "connections": CONNECTIONS, "requests": requests, "seconds": seconds, "cycle": again}
    used = cpu_seconds(server.process)
    generator = await asyncio.create_subprocess_exec(
        sys.executable, HERE / "load.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    told, _ = await generator.communicate(json.dumps(plan).encode())
    used = cpu_seconds(server.process) - used
    answer: dict[str, Any] = json.loads(told)
    if set(answer["answers"]) != {str(status)}:
        raise RuntimeError(f"answered by {answer['answers']}, not by {status}")
    lasted = answer["requests"] / answer["rate"]
    return Answers(
        rate=answer["rate"],
        p50=answer["p50"],
        p99=answer["p99"],
        began=answer["began"],
        server=used / lasted,
        generator=answer["cpu"] / lasted,
    )


def get(path: str, headers: Mapping[str, str] | None = None) -> str:
    """Write a GET."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *_lines(headers or {}), "", ""])


def post(path: str, body: Mapping[str, object]) -> str:
    """Write a POST of JSON."""
    said = json.dumps(body)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(said))}
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *_lines(headers), "", said])


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]
