"""The retry policy: when a failed attempt is retried, and when the job fails."""

import random
from dataclasses import dataclass
from typing import Final

from domain.errors import CisternError
from domain.jobs.outcomes import Failed, Payload, RetryIn

_CEILING_SECONDS: Final = 300.0


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter: ``base`` seconds, doubled after each failure, at most five minutes.

    The jitter (a factor from 0.5 to 1.5) keeps jobs that failed together from being retried together.
    """

    base: float

    def delay(self, attempt: int) -> float:
        """Return the delay in seconds after failure number ``attempt``, counted from 1."""
        return min(self.base * 2.0 ** min(attempt - 1, 30), _CEILING_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311

    def decide(self, error: CisternError, *, attempt: int, max_attempts: int) -> RetryIn | Failed:
        """Decide on a transient failure: retry, or fail after ``max_attempts`` attempts."""
        if attempt >= max_attempts:
            return Failed(describe(error))
        return RetryIn(self.delay(attempt), describe(error))

    def wait(self, error: CisternError) -> RetryIn:
        """Retry soon without spending an attempt: the storage is only busy with another operation."""
        return RetryIn(self.delay(1), describe(error), free=True)


def describe(error: CisternError) -> Payload:
    """Convert an error to the format of a job's ``error`` column."""
    return {"code": error.code, "detail": error.message}


WORKER_LOST: Final[Payload] = {
    "code": "worker-lost",
    "detail": "The worker that ran this job died or lost its connection.",
}
