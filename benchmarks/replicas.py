"""The gain of a second worker process, with PostgreSQL as the bottleneck and with storage as the bottleneck."""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

from statistics import median
from typing import Final

from arena import MAX_JOBS, Arena
from contestants import Cistern
from pacing import Pacing
from throughput import one_round

SLOW_MS: Final = 20
SLOTS: Final = 10


async def replicas(arena: Arena, pacing: Pacing) -> dict[str, dict[int, list[float]]]:
    """Return jobs per second, by storage and by the number of workers."""
    variants = (
        Cistern(arena, name=f"null storage, {MAX_JOBS} jobs at once in each worker"),
        Cistern(
            arena,
            f"faulty+null:?delay_ms={SLOW_MS}",
            SLOTS,
            name=f"{SLOW_MS} ms of storage work, {SLOTS} jobs at once in each worker",
            expected_rate=480,
        ),
    )
    rates_by_variant: dict[str, dict[int, list[float]]] = {variant.name: {1: [], 2: []} for variant in variants}
    for _ in range(pacing.rounds):
        for variant in variants:
            rates = rates_by_variant[variant.name]
            for workers in rates:
                previous = rates[workers] or rates[1] or [variant.expected_rate]
                rates[workers].append(await one_round(variant, pacing.jobs(median(previous) * workers), workers))
                print(f"  {variant.name}, {workers} workers: {rates[workers][-1]:,.0f} jobs/s", flush=True)
    return rates_by_variant
