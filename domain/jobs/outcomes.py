"""The outcomes of one attempt at a job, as values."""

from dataclasses import dataclass
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True)
class Succeeded:
    """The work is done. ``result`` is stored with the job, and its effect is recorded from it.

    ``copied`` is the number of bytes copied; None if the work copies nothing or was found already done.
    """

    result: Payload
    copied: int | None = None


@dataclass(frozen=True)
class Delegated:
    """The bulk job is planned. It stays running without a lease, until the record of its last item ends it."""

    result: Payload


@dataclass(frozen=True)
class Yielded:
    """A slice of the work is done; the job is dispatched again after ``delay`` seconds, so that others can run.

    As the slice succeeded, the attempt counter is reset.
    """

    delay: float = 0.0


@dataclass(frozen=True)
class RetryIn:
    """The attempt failed; retry after ``delay`` seconds. A ``free`` retry gives the attempt back."""

    delay: float
    error: Payload
    free: bool = False


@dataclass(frozen=True)
class Failed:
    """The job failed for good. ``found`` is the state found on the storage; None if unknown or nothing."""

    error: Payload
    found: Payload | None = None


@dataclass(frozen=True)
class Released:
    """The worker is shutting down or has no free slot; the job returns to the queue and the attempt is given back."""


@dataclass(frozen=True)
class Cancelled:
    """The user cancelled the job. ``found`` as in `Failed`."""

    found: Payload | None = None


@dataclass(frozen=True)
class Superseded:
    """A later attempt has taken over the job; this one must not change anything."""


Outcome = Succeeded | Delegated | Yielded | RetryIn | Failed | Released | Cancelled | Superseded
