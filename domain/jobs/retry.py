"""When to try again, and when to stop trying."""

import random
from dataclasses import dataclass
from typing import Final

from domain.errors import CisternError
from domain.jobs.outcomes import Failed, Payload, RetryIn

_CEILING_SECONDS: Final = 300.0


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff from ``base`` seconds, doubled each time, at most five minutes, with jitter.

    The jitter (half to one and a half) keeps jobs that failed together from coming back together.
    """

    base: float

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the ``attempt``-th failure, counted from 1."""
        return min(self.base * 2.0 ** min(attempt - 1, 30), _CEILING_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311

    def decide(self, error: CisternError, *, attempt: int, max_attempts: int) -> RetryIn | Failed:
        """Decide about a failure that may pass: another try, or the end after ``max_attempts`` of them."""
        if attempt >= max_attempts:
            return Failed(describe(error))
        return RetryIn(self.delay(attempt), describe(error))

    def wait(self, error: CisternError) -> RetryIn:
        """Come back soon, without counting it: somebody else is just in the way."""
        return RetryIn(self.delay(1), describe(error), free=True)


def describe(error: CisternError) -> Payload:
    """Put an error into the form that a job's ``error`` has."""
    return {"code": error.code, "detail": error.message}


WORKER_LOST: Final[Payload] = {
    "code": "worker-lost",
    "detail": "The worker that ran this job died or lost touch.",
}
