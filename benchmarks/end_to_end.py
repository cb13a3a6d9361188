"""From the first of many requests to the end of the last job: one API process, one worker process."""

# ruff: noqa: INP001, T201 - no package, and it is there to print

from collections.abc import Awaitable, Callable
from typing import Final

from arena import Arena
from contestants import Cistern, PeerInRace, until_done
from http_load import ask, post
from pacing import Pacing
from stage import MIB, at_work, serving

#: Nothing is cut off by the clock: so many seconds are never needed.
ANY_TIME: Final = 3600
CISTERN: Final = "Cistern: POST /volumes/ID/expand, to `succeeded`"
TEXTBOOK: Final = "the textbook: its POST, then arq (textbook)"


async def end_to_end(arena: Arena, peers: list[PeerInRace], pacing: Pacing) -> dict[str, list[float]]:
    """Seconds that each of the two takes, round after round."""
    textbook = next(peer for peer in peers if peer.name == "arq (textbook)")
    found: dict[str, list[float]] = {CISTERN: [], TEXTBOOK: []}
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        CISTERN: lambda: _cistern(Cistern(arena), pacing.end_to_end),
        TEXTBOOK: lambda: _textbook(textbook, pacing.end_to_end),
    }
    for _ in range(pacing.rounds):
        for name, way in ways.items():
            found[name].append(await way())
            print(f"  {name:50}{found[name][-1]:8.1f} s", flush=True)
    return found


async def _cistern(cistern: Cistern, jobs: int) -> float:
    await cistern.prepare(0)
    volumes = await cistern.volumes(jobs)
    with cistern.worker() as process, serving("api.main:app", cistern.environment, "/readyz") as server:
        await at_work(cistern.arena.services.database, [process])
        wishes = [post(f"/api/v1/volumes/{volume}/expand", {"by": MIB}) for volume in volumes]
        asked = await ask(server, wishes, 202, ANY_TIME, again=False)
        await until_done(cistern, jobs)
    await cistern.rate()  # which looks whether all is as it was to become
    return float(await cistern.arena.cistern.fetchval(_LAST.format("finished_at", "jobs"))) - asked.began


async def _textbook(peer: PeerInRace, jobs: int) -> float:
    """Its worker is warm when it has done one job."""
    await peer.prepare(1)
    with peer.worker(), serving("peers.textbook_api:app", peer.arena.peers_environment, "/nothing") as server:
        await until_done(peer, 1)
        await peer.arena.peers.execute("TRUNCATE work RESTART IDENTITY")
        wishes = [post("/work", {"name": "a", "size": MIB})] * jobs
        asked = await ask(server, wishes, 202, ANY_TIME, again=False)
        await until_done(peer, jobs)
    return float(await peer.arena.peers.fetchval(_LAST.format("done_at", "work"))) - asked.began


_LAST: Final = "SELECT extract(epoch FROM max({})) FROM {}"
