"""Requests per second of one API process: Cistern, an empty handler, and a textbook's POST."""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

from collections.abc import Sequence
from typing import Final

import httpx
from arena import Arena
from contestants import Cistern, until_done
from http_load import LoadResult, get, post, run_load
from pacing import Pacing
from servers import BEARER, MIB, Server, serving

#: More volumes or jobs than any API here can accept in one second.
MAX_PER_SECOND: Final = 5_000
#: Number of jobs to poll.
POLLED: Final = 200

EMPTY: Final = "an empty FastAPI handler"
TEXTBOOK: Final = "the textbook's POST: session, INSERT, commit, enqueue_job"
CREATE: Final = "Cistern: POST /volumes"
EXPAND: Final = "Cistern: POST /volumes/ID/expand"
POLLS: Final = {
    "live": "Cistern: GET /jobs/ID, live jobs",
    "live, 304": "Cistern: GET /jobs/ID, live jobs, not modified (304)",
    "ended": "Cistern: GET /jobs/ID, ended jobs",
    "ended, 304": "Cistern: GET /jobs/ID, ended jobs, not modified (304)",
}


async def api_requests(arena: Arena, pacing: Pacing) -> dict[str, list[LoadResult]]:
    """Measure every request in turn, round after round."""
    results: dict[str, list[LoadResult]] = {}
    for _ in range(pacing.rounds):
        for name, result in (await _textbook(arena, pacing) | await _cistern(arena, pacing)).items():
            results.setdefault(name, []).append(result)
            print(f"  {name:60}{result.rate:8,.0f}/s  p99 {result.p99:6.1f} ms", flush=True)
    return results


async def _textbook(arena: Arena, pacing: Pacing) -> dict[str, LoadResult]:
    arena.flush_redis()
    await arena.peers.execute("TRUNCATE work")
    with serving("peers.textbook_api:app", arena.peers_environment, "/nothing") as server:
        empty = await run_load(server, [get("/nothing")], 200, pacing.seconds, cycle=True)
        added = await run_load(server, [post("/work", {"name": "a", "size": MIB})], 202, pacing.seconds, cycle=True)
    return {EMPTY: empty, TEXTBOOK: added}


async def _cistern(arena: Arena, pacing: Pacing) -> dict[str, LoadResult]:
    """Measure Cistern without a worker while it accepts jobs: the rate is the API's alone, as for the textbook."""
    cistern = Cistern(arena)
    count = int(MAX_PER_SECOND * pacing.seconds)
    await cistern.prepare(0)
    with serving("api.main:app", cistern.environment, "/readyz") as server:
        create = [post("/api/v1/volumes", {"name": f"volume-{number}", "size": MIB}) for number in range(count)]
        created = await run_load(server, create, 202, pacing.seconds, cycle=False)
        expand = [post(f"/api/v1/volumes/{v}/expand", {"by": MIB}) for v in await cistern.volumes(count)]
        expanded = await run_load(server, expand, 202, pacing.seconds, cycle=False)
        await cistern.prepare(POLLED)
        polls = await _polls(cistern, server, "live", pacing)
        with cistern.worker():
            await until_done(cistern, POLLED)
        polls |= await _polls(cistern, server, "ended", pacing)
    return {CREATE: created, EXPAND: expanded} | polls


async def _polls(cistern: Cistern, server: Server, state: str, pacing: Pacing) -> dict[str, LoadResult]:
    paths = [f"/api/v1/jobs/{row['id']}" for row in await cistern.arena.cistern.fetch("SELECT id FROM jobs")]
    tags = await _tags(server, paths)
    unchanged = [get(path, {"If-None-Match": tag}) for path, tag in zip(paths, tags, strict=True)]
    return {
        POLLS[state]: await run_load(server, [get(path) for path in paths], 200, pacing.seconds, cycle=True),
        POLLS[f"{state}, 304"]: await run_load(server, unchanged, 304, pacing.seconds, cycle=True),
    }


async def _tags(server: Server, paths: Sequence[str]) -> list[str]:
    async with httpx.AsyncClient(base_url=server.address, headers=BEARER) as http:
        return [(await http.get(path)).headers["ETag"] for path in paths]
