"""What a second worker process brings: where PostgreSQL sets the pace, and where storage does."""

# ruff: noqa: INP001, T201 - no package, and it is there to print

from statistics import median
from typing import Final

from arena import MAX_JOBS, Arena
from contestants import Cistern
from pacing import Pacing
from throughput import one_round

SLOW_MS: Final = 20
SLOTS: Final = 10


async def replicas(arena: Arena, pacing: Pacing) -> dict[str, dict[int, list[float]]]:
    """Jobs per second, by storage and by the number of workers."""
    ways = (
        Cistern(arena, name=f"null storage, {MAX_JOBS} jobs at once in each worker"),
        Cistern(
            arena,
            f"faulty+null:?delay_ms={SLOW_MS}",
            SLOTS,
            name=f"{SLOW_MS} ms of storage work, {SLOTS} jobs at once in each worker",
            pace=480,
        ),
    )
    found: dict[str, dict[int, list[float]]] = {way.name: {1: [], 2: []} for way in ways}
    for _ in range(pacing.rounds):
        for way in ways:
            rates = found[way.name]
            for workers in rates:
                known = rates[workers] or rates[1] or [way.pace]
                rates[workers].append(await one_round(way, pacing.jobs(median(known) * workers), workers))
                print(f"  {way.name}, {workers} workers: {rates[workers][-1]:,.0f} jobs/s", flush=True)
    return found
