"""Throughput of one worker process with a queue that is never empty."""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from contestants import Contestant, Stuck, until_done
from pacing import Pacing, in_order_of_round
from peer_contestants import PeerFailed


async def throughput(contestants: Sequence[Contestant], pacing: Pacing) -> dict[str, list[float]]:
    """Run all contestants, round after round, for about the same time each; return jobs per second.

    A contestant that does not finish a round has no result for it: one hiccup must not abort a race of 30 minutes.
    """
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(pacing.rounds):
        for contestant in in_order_of_round(number, contestants):
            previous = rates[contestant.name] or [contestant.expected_rate]
            try:
                rate = await one_round(contestant, pacing.jobs(median(previous)))
            except (Stuck, PeerFailed) as error:
                print(f"  {contestant.name:24}   did not finish: {error}", flush=True)
            else:
                rates[contestant.name].append(rate)
                print(f"  {contestant.name:24}{rate:8,.0f} jobs/s", flush=True)
    return {name: rounds for name, rounds in rates.items() if rounds}


async def one_round(contestant: Contestant, jobs: int, workers: int = 1) -> float:
    """Fill the queue, run the workers, and return their jobs per second."""
    await contestant.prepare(jobs)
    with ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(contestant.worker())
        await until_done(contestant, jobs)
    return await contestant.rate()
