"""How many requests one API process answers: Cistern's, beside a handler that does nothing and a textbook's."""

# ruff: noqa: INP001, T201 - no package, and it is there to print

from collections.abc import Sequence
from typing import Final

import httpx
from arena import Arena
from contestants import Cistern, until_done
from http_load import Answers, ask, get, post
from pacing import Pacing
from stage import MIB, Server, serving

#: More volumes or jobs than any API here will be asked to accept in a second.
MOST_PER_SECOND: Final = 5_000
POLLED: Final = 200

NOTHING: Final = "an empty FastAPI handler"
TEXTBOOK: Final = "the textbook's POST: session, INSERT, commit, enqueue_job"
CREATE: Final = "Cistern: POST /volumes"
EXPAND: Final = "Cistern: POST /volumes/ID/expand"
POLLS: Final = {
    "live": "Cistern: GET /jobs/ID of jobs that are live",
    "live, 304": "Cistern: the same of live ones, unchanged since (304)",
    "ended": "Cistern: GET /jobs/ID of jobs that have ended",
    "ended, 304": "Cistern: the same of ended ones, unchanged since (304)",
}


async def front(arena: Arena, pacing: Pacing) -> dict[str, list[Answers]]:
    """Ask everything in turn, round after round."""
    found: dict[str, list[Answers]] = {}
    for _ in range(pacing.rounds):
        for name, answers in (await _textbook(arena, pacing) | await _cistern(arena, pacing)).items():
            found.setdefault(name, []).append(answers)
            print(f"  {name:60}{answers.rate:8,.0f}/s  p99 {answers.p99:6.1f} ms", flush=True)
    return found


async def _textbook(arena: Arena, pacing: Pacing) -> dict[str, Answers]:
    arena.flush_redis()
    await arena.peers.execute("TRUNCATE work")
    with serving("peers.textbook_api:app", arena.peers_environment, "/nothing") as server:
        nothing = await ask(server, [get("/nothing")], 200, pacing.seconds, again=True)
        added = await ask(server, [post("/work", {"name": "a", "size": MIB})], 202, pacing.seconds, again=True)
    return {NOTHING: nothing, TEXTBOOK: added}


async def _cistern(arena: Arena, pacing: Pacing) -> dict[str, Answers]:
    """No worker is there while jobs are asked for: the rate is the API's alone, as the textbook's is."""
    cistern = Cistern(arena)
    most = int(MOST_PER_SECOND * pacing.seconds)
    await cistern.prepare(0)
    with serving("api.main:app", cistern.environment, "/readyz") as server:
        new = [post("/api/v1/volumes", {"name": f"volume-{number}", "size": MIB}) for number in range(most)]
        created = await ask(server, new, 202, pacing.seconds, again=False)
        grow = [post(f"/api/v1/volumes/{v}/expand", {"by": MIB}) for v in await cistern.volumes(most)]
        expanded = await ask(server, grow, 202, pacing.seconds, again=False)
        await cistern.prepare(POLLED)
        polls = await _polls(cistern, server, "live", pacing)
        with cistern.worker():
            await until_done(cistern, POLLED)
        polls |= await _polls(cistern, server, "ended", pacing)
    return {CREATE: created, EXPAND: expanded} | polls


async def _polls(cistern: Cistern, server: Server, state: str, pacing: Pacing) -> dict[str, Answers]:
    paths = [f"/api/v1/jobs/{row['id']}" for row in await cistern.arena.cistern.fetch("SELECT id FROM jobs")]
    tags = await _tags(server, paths)
    unchanged = [get(path, {"If-None-Match": tag}) for path, tag in zip(paths, tags, strict=True)]
    return {
        POLLS[state]: await ask(server, [get(path) for path in paths], 200, pacing.seconds, again=True),
        POLLS[f"{state}, 304"]: await ask(server, unchanged, 304, pacing.seconds, again=True),
    }


async def _tags(server: Server, paths: Sequence[str]) -> list[str]:
    async with httpx.AsyncClient(base_url=server.address) as http:
        return [(await http.get(path)).headers["ETag"] for path in paths]
