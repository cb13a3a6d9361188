"""How long everything takes: a whole run, or a quick look whether all works."""

# ruff: noqa: INP001 - benchmarks are no package

from dataclasses import dataclass


@dataclass(frozen=True)
class Pacing:
    """The length of a run."""

    rounds: int
    #: How long each round of anything takes, about.
    seconds: float
    #: Of the latency of an idle worker.
    samples: int
    idle_seconds: float
    end_to_end: int

    def jobs(self, rate: float) -> int:
        """How many jobs make a round, for a system that does so many of them in a second."""
        return max(100, int(rate * self.seconds))


WHOLE = Pacing(rounds=3, seconds=5, samples=300, idle_seconds=10, end_to_end=20_000)
QUICK = Pacing(rounds=1, seconds=1, samples=30, idle_seconds=2, end_to_end=500)
