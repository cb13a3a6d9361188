"""Pick-up latency of an idle worker, and the CPU time that it uses while idle."""

# ruff: noqa: INP001, T201, S311 - not a package, its output is printed, and the random intervals are not cryptographic

import asyncio
import json
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Final
from urllib.parse import urlsplit

from arena import Arena, cpu_seconds
from contestants import Cistern, Stuck, until_done
from http_load import post
from load import body_length
from pacing import Pacing
from peer_contestants import PeerFailed, PeerInRace
from peers.peer import PAUSES
from servers import MIB, serving

WARM: Final = 20
#: Times in ns: the request was sent, the response arrived, and the work began.
Moments = tuple[int, int, int]


@dataclass(frozen=True)
class Pickup:
    """Milliseconds from the response, and from the request, to the start of the work; the CPU share when idle."""

    p50: float
    p99: float
    p50_since_sent: float
    idle: float


async def pickup(arena: Arena, peers: Sequence[PeerInRace], pacing: Pacing) -> dict[str, Pickup]:
    """Measure each contestant while it is idle, and then with single jobs at irregular intervals."""
    results = {}
    for name, measure in {
        "Cistern": partial(_of_cistern, arena),
        **{p.name: partial(_of_peer, p) for p in peers},
    }.items():
        try:
            results[name] = result = await measure(pacing)
        except (Stuck, PeerFailed) as error:
            print(f"  {name:24}   did not finish: {error}", flush=True)
            continue
        print(f"  {name:24}{result.p50:8.1f} ms{result.p99:8.1f} ms{result.idle:8.1%}", flush=True)
    return results


async def _of_peer(peer: PeerInRace, pacing: Pacing) -> Pickup:
    await peer.prepare(WARM)
    with peer.worker() as process:
        await until_done(peer, WARM)
        await peer.insert_rows(pacing.samples)
        idle = await idle_share(process, pacing.idle_seconds)
        times = json.loads(await peer.run("trickle", peer.name, str(pacing.samples)))
        await until_done(peer, pacing.samples)
    begun = await peer.arena.peers.fetch("SELECT begun_ns FROM work ORDER BY id")
    return _summary([(*time, row["begun_ns"]) for time, row in zip(times, begun, strict=True)], idle)


async def idle_share(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Return the share of one core that an idle worker and its descendants use."""
    await asyncio.sleep(1)  # the previous jobs may still be settling
    began, used = time.monotonic(), cpu_seconds(process)
    await asyncio.sleep(seconds)
    return (cpu_seconds(process) - used) / (time.monotonic() - began)


def _summary(moments: Sequence[Moments], idle: float) -> Pickup:
    since_answer = quantiles(((begun - answered) / 1e6 for _, answered, begun in moments), n=100)
    since_sent = quantiles(((begun - sent) / 1e6 for sent, _, begun in moments), n=100)
    return Pickup(since_answer[49], since_answer[98], since_sent[49], idle)


async def _of_cistern(arena: Arena, pacing: Pacing) -> Pickup:
    """Measure Cistern over HTTP; the storage driver's journal records when the work began."""
    journal = arena.folder / "journal"
    cistern = Cistern(arena, f"faulty+null:?journal={journal}")
    await cistern.prepare(WARM)
    with cistern.worker() as process, serving("api.main:app", cistern.environment, "/readyz") as server:
        await until_done(cistern, WARM)
        idle = await idle_share(process, pacing.idle_seconds)
        volumes = await cistern.volumes(pacing.samples)
        times = await trickle(server.address, volumes)
        await until_done(cistern, pacing.samples)
    begun = begun_times(journal)
    return _summary([(*time, begun[volume]) for volume, time in times.items()], idle)


async def trickle(address: str, volumes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Expand one volume after the other; return when each request was sent and answered, in ns.

    The requests are prepared bytes on one connection: an HTTP library would take two to three milliseconds for each.

    Raises:
        RuntimeError: a request was not accepted.
    """
    times, url = {}, urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    for volume in volumes:
        request = post(f"/api/v1/volumes/{volume}/expand", {"by": MIB}).encode()
        await asyncio.sleep(random.uniform(*PAUSES))
        sent = time.time_ns()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(body_length(head))
        times[volume] = (sent, time.time_ns())
        if not head.startswith(b"HTTP/1.1 202 "):
            raise RuntimeError(f"not accepted: {body.decode()}")
    writer.close()
    await writer.wait_closed()
    return times


def begun_times(journal: Path) -> dict[str, int]:
    """Return when the work on each volume began, in ns."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return {line["volume_id"]: line["at"] for line in lines if line["event"] == "begun"}
