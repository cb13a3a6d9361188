"""The outcomes of one attempt at a job, as values.

``status`` is the status that the job gets when the outcome is settled; None if the outcome is never settled.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from domain.jobs.states import JobStatus

Payload = dict[str, Any]


@dataclass(frozen=True)
class Succeeded:
    """The work is done. ``result`` is stored with the job, and its effect is recorded from it.

    ``copied`` is the number of bytes copied; None if the work copies nothing or was found already done.
    """

    status: ClassVar = JobStatus.SUCCEEDED

    result: Payload
    copied: int | None = None


@dataclass(frozen=True)
class Delegated:
    """The bulk job is planned. It stays running without a lease, until the record of its last item ends it."""

    status: ClassVar = JobStatus.RUNNING

    result: Payload


@dataclass(frozen=True)
class Yielded:
    """A slice of the work is done; the job is dispatched again after ``delay`` seconds, so that others can run.

    As the slice succeeded, the attempt counter is reset.
    """

    status: ClassVar = JobStatus.QUEUED

    delay: float = 0.0


@dataclass(frozen=True)
class RetryIn:
    """The attempt failed; retry after ``delay`` seconds. A ``free`` retry gives the attempt back."""

    status: ClassVar = JobStatus.QUEUED

    delay: float
    error: Payload
    free: bool = False


@dataclass(frozen=True)
class Failed:
    """The job failed for good. ``found`` is the state found on the storage; None if unknown or nothing."""

    status: ClassVar = JobStatus.FAILED

    error: Payload
    found: Payload | None = None


@dataclass(frozen=True)
class Released:
    """The worker is shutting down or has no free slot; the job returns to the queue and the attempt is given back."""

    status: ClassVar = JobStatus.QUEUED


@dataclass(frozen=True)
class Cancelled:
    """The user cancelled the job. ``found`` as in `Failed`."""

    status: ClassVar = JobStatus.CANCELLED

    found: Payload | None = None


@dataclass(frozen=True)
class Superseded:
    """A later attempt has taken over the job; this one must not change anything."""

    status: ClassVar = None


Outcome = Succeeded | Delegated | Yielded | RetryIn | Failed | Released | Cancelled | Superseded
