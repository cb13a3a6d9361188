"""One attempt at a job: the job as its claim left it, the outcome of the attempt, and when it is tried again.

``name`` of an outcome is its name in the log; ``status`` is the status that the job gets when it is settled, None if
the outcome is never settled.
"""

import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple, Self
from uuid import UUID

from domain.errors import CisternError
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import JobStatus
from domain.storage.context import Fence

Payload = dict[str, Any]


class ClaimedJob(NamedTuple):
    """The columns of a job that its handler needs, as its claim left them: ``attempt`` counts this one.

    A plain tuple: a worker gets thousands of them per second, and SQLAlchemy would track each mapped object.
    """

    id: UUID
    project_id: UUID
    kind: str
    params: dict[str, Any]
    volume_id: UUID | None
    volume_name: str | None
    snapshot_id: UUID | None
    backend: str | None
    parent_id: UUID | None
    retry_of: UUID | None
    created_by: str | None
    attempt: int
    max_attempts: int
    epoch: int
    worker_id: UUID | None
    cancel_requested_at: datetime | None
    error: dict[str, Any] | None
    traceparent: str | None = None
    #: Milliseconds from `run_at` to the claim, by PostgreSQL's clock. No column: 0 unless the job was really claimed.
    queue_ms: int = 0

    @classmethod
    def from_row(cls, job: Job) -> Self:
        """Convert a loaded row."""
        return cls(*(getattr(job, name) for name in CLAIMED_COLUMNS))

    @property
    def message(self) -> JobMessage:
        """The message that it was claimed with."""
        return JobMessage(self.id, self.epoch, self.backend, self.project_id)

    @property
    def fence(self) -> Fence:
        """The fence, which orders this attempt among all attempts at the same volume or snapshot."""
        return Fence(self.params["fence_version"], self.epoch)


#: The fields of `ClaimedJob` that are columns of the job.
CLAIMED_COLUMNS: Final = ClaimedJob._fields[:-1]


def subject_fields(job: Job | ClaimedJob) -> dict[str, object]:
    """Return what a job works on, for its log lines."""
    return {"volume_id": job.volume_id, "volume_name": job.volume_name, "snapshot_id": job.snapshot_id}


@dataclass(frozen=True)
class Succeeded:
    """The work is done. ``result`` is stored with the job, and its effect is recorded from it.

    ``copied`` is the number of bytes copied; None if the work copies nothing or was found already done.
    """

    name: ClassVar = "succeeded"
    status: ClassVar = JobStatus.SUCCEEDED

    result: Payload
    copied: int | None = None


@dataclass(frozen=True)
class Delegated:
    """The bulk job is planned. It stays running without a lease, until the record of its last item ends it."""

    name: ClassVar = "delegated"
    status: ClassVar = JobStatus.RUNNING

    result: Payload


@dataclass(frozen=True)
class Yielded:
    """A slice of the work is done; the job is dispatched again after ``delay`` seconds, so that others can run.

    As the slice succeeded, the attempt counter is reset.
    """

    name: ClassVar = "yielded"
    status: ClassVar = JobStatus.QUEUED

    delay: float = 0.0


@dataclass(frozen=True)
class RetryIn:
    """The attempt failed; retry after ``delay`` seconds. A ``free`` retry gives the attempt back."""

    name: ClassVar = "retry"
    status: ClassVar = JobStatus.QUEUED

    delay: float
    error: Payload
    free: bool = False


@dataclass(frozen=True)
class Failed:
    """The job failed for good. ``found`` is the state found on the storage; None if unknown or nothing."""

    name: ClassVar = "failed"
    status: ClassVar = JobStatus.FAILED

    error: Payload
    found: Payload | None = None


@dataclass(frozen=True)
class Released:
    """The worker is shutting down or has no free slot; the job returns to the queue and the attempt is given back."""

    name: ClassVar = "released"
    status: ClassVar = JobStatus.QUEUED


@dataclass(frozen=True)
class Cancelled:
    """The user cancelled the job. ``found`` as in `Failed`."""

    name: ClassVar = "cancelled"
    status: ClassVar = JobStatus.CANCELLED

    found: Payload | None = None


@dataclass(frozen=True)
class Superseded:
    """A later attempt has taken over the job; this one must not change anything."""

    name: ClassVar = "superseded"
    status: ClassVar = None


@dataclass(frozen=True)
class FenceBehind:
    """The storage has refused the fence of this attempt: the one ``stored`` there is higher.

    Normally another attempt has taken over the job, so that settling this one changes nothing. If this worker still
    holds the job, no later attempt exists, and the database has lost what it knew of earlier ones, as in a failover
    with asynchronous replication. The fence is then raised above the one stored, and the job is retried after ``delay``
    seconds. This costs no attempt.
    """

    name: ClassVar = "fence-behind"
    status: ClassVar = JobStatus.QUEUED

    stored: Fence
    delay: float
    error: Payload


Outcome = Succeeded | Delegated | Yielded | RetryIn | Failed | Released | Cancelled | Superseded | FenceBehind


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
        """Retry soon without spending an attempt: nothing was tried yet."""
        return RetryIn(self.delay(1), describe(error), free=True)


def describe(error: CisternError) -> Payload:
    """Convert an error to the format of a job's ``error`` column."""
    return {"code": error.code, "detail": error.message}


WORKER_LOST: Final[Payload] = {
    "code": "worker-lost",
    "detail": "The worker that ran this job died or lost its connection.",
}
