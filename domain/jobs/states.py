"""The statuses of a job and the allowed transitions, as a table."""

import enum
from typing import Final


class JobStatus(enum.StrEnum):
    """The status of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


MOVES: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,
            JobStatus.SUCCEEDED,
            JobStatus.PARTIAL,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.PARTIAL: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

ENDED: Final = frozenset(status for status, moves in MOVES.items() if not moves)
LIVE: Final = frozenset(MOVES) - ENDED
RETRYABLE: Final = frozenset({JobStatus.PARTIAL, JobStatus.FAILED, JobStatus.CANCELLED})
