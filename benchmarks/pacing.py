"""The duration of the benchmarks: a full run, or a quick one that checks that everything works."""

# ruff: noqa: INP001 - benchmarks are not a package

from dataclasses import dataclass


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
