"""How many jobs one worker process does in a second, when there are always more."""

# ruff: noqa: INP001, T201 - no package, and it is there to print

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from contestants import Contestant, Stuck, Unanswered, until_done
from pacing import Pacing


async def throughput(contestants: Sequence[Contestant], pacing: Pacing) -> dict[str, list[float]]:
    """Let everybody run in turn, round after round, each for about as long as any other; jobs per second.

    Who does not finish a round has none: machines hiccup, and a race of half an hour must not be lost by that.
    """
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(pacing.rounds):
        for contestant in contestants:
            known = rates[contestant.name] or [contestant.pace]
            try:
                rate = await one_round(contestant, pacing.jobs(median(known)))
            except (Stuck, Unanswered) as error:
                print(f"  {contestant.name:24}   did not finish: {error}", flush=True)
            else:
                rates[contestant.name].append(rate)
                print(f"  {contestant.name:24}{rate:8,.0f} jobs/s", flush=True)
    return {name: rounds for name, rounds in rates.items() if rounds}


async def one_round(contestant: Contestant, jobs: int, workers: int = 1) -> float:
    """Fill the queue, start a worker or more, and see how fast they are."""
    await contestant.prepare(jobs)
    with ExitStack() as fleet:
        for _ in range(workers):
            fleet.enter_context(contestant.worker())
        await until_done(contestant, jobs)
    return await contestant.rate()
