"""Seconds from the first of many requests to the end of the last job: one API process, one worker process."""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

from collections.abc import Awaitable, Callable
from typing import Final

from arena import Arena
from contestants import Cistern, until_done
from http_load import post, run_load
from pacing import Pacing
from peer_contestants import PeerInRace
from servers import MIB, serving, wait_for_workers

#: A time limit, in seconds, that is never reached.
NO_LIMIT: Final = 3600
CISTERN: Final = "Cistern: POST /volumes/ID/expand, to `succeeded`"
TEXTBOOK: Final = "the textbook: its POST, then arq (textbook)"


async def end_to_end(arena: Arena, peers: list[PeerInRace], pacing: Pacing) -> dict[str, list[float]]:
    """Return the seconds that each of the two systems takes, for all rounds."""
    textbook = next(peer for peer in peers if peer.name == "arq (textbook)")
    results: dict[str, list[float]] = {CISTERN: [], TEXTBOOK: []}
    variants: dict[str, Callable[[], Awaitable[float]]] = {
        CISTERN: lambda: _cistern(Cistern(arena), pacing.end_to_end),
        TEXTBOOK: lambda: _textbook(textbook, pacing.end_to_end),
    }
    for _ in range(pacing.rounds):
        for name, measure in variants.items():
            results[name].append(await measure())
            print(f"  {name:50}{results[name][-1]:8.1f} s", flush=True)
    return results


async def _cistern(cistern: Cistern, jobs: int) -> float:
    await cistern.prepare(0)
    volumes = await cistern.volumes(jobs)
    with cistern.worker() as process, serving("api.main:app", cistern.environment, "/readyz") as server:
        await wait_for_workers(cistern.arena.services.database, [process])
        requests = [post(f"/api/v1/volumes/{volume}/expand", {"by": MIB}) for volume in volumes]
        load = await run_load(server, requests, 202, NO_LIMIT, cycle=False)
        await until_done(cistern, jobs)
    await cistern.rate()  # checks that every volume has the expected size
    return float(await cistern.arena.cistern.fetchval(_LAST.format("finished_at", "jobs"))) - load.began


async def _textbook(peer: PeerInRace, jobs: int) -> float:
    """Measure the textbook, after one job that warms up its worker."""
    await peer.prepare(1)
    with peer.worker(), serving("peers.textbook_api:app", peer.arena.peers_environment, "/nothing") as server:
        await until_done(peer, 1)
        await peer.arena.peers.execute("TRUNCATE work RESTART IDENTITY")
        requests = [post("/work", {"name": "a", "size": MIB})] * jobs
        load = await run_load(server, requests, 202, NO_LIMIT, cycle=False)
        await until_done(peer, jobs)
    return float(await peer.arena.peers.fetchval(_LAST.format("done_at", "work"))) - load.began


_LAST: Final = "SELECT extract(epoch FROM max({})) FROM {}"
