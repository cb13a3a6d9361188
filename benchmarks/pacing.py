"""The duration of the benchmarks: a full run, or a quick one that checks that everything works; and their order."""

# ruff: noqa: INP001 - benchmarks are not a package

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pacing:
    """The length of a run."""

    rounds: int
    #: Approximate duration of each round.
    seconds: float
    #: Number of requests in the measurement of an idle worker's latency.
    samples: int
    idle_seconds: float
    end_to_end: int

    def jobs(self, rate: float) -> int:
        """Return the number of jobs in a round, for a system that processes ``rate`` jobs per second."""
        return max(100, int(rate * self.seconds))


FULL = Pacing(rounds=3, seconds=5, samples=300, idle_seconds=10, end_to_end=20_000)
QUICK = Pacing(rounds=1, seconds=1, samples=30, idle_seconds=2, end_to_end=500)


def in_order_of_round(number: int, items: Collection[Item]) -> list[Item]:
    """Return the items in the order of a round, the same in every run: nothing always comes after the same thing."""
    return Random(number).sample(list(items), len(items))  # noqa: S311 (not a secret)
