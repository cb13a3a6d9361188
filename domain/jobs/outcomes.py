"""How one attempt at a job can end, as values."""

from dataclasses import dataclass
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True)
class Succeeded:
    """The work is done; ``result`` is what the job shows and what the effect is recorded from.

    ``copied``: how many bytes the attempt had to copy, None for work that copies none or found it done.
    """

    result: Payload
    copied: int | None = None


@dataclass(frozen=True)
class Delegated:
    """The plan is made: the job goes on without a lease of its own, until the record of its last part ends it."""

    result: Payload


@dataclass(frozen=True)
class Yielded:
    """A slice is done: the job rings for itself anew in ``delay`` seconds, so that others get their turn.

    It went well so far, so its attempts start afresh.
    """

    delay: float = 0.0


@dataclass(frozen=True)
class RetryIn:
    """Worth another try in ``delay`` seconds. ``free`` when the failure costs no attempt."""

    delay: float
    error: Payload
    free: bool = False


@dataclass(frozen=True)
class Failed:
    """No further try. ``found`` is what was found on the storage, None if that is unknown or nothing."""

    error: Payload
    found: Payload | None = None


@dataclass(frozen=True)
class Released:
    """The worker shuts down, or had no slot for the job; the attempt is given back."""


@dataclass(frozen=True)
class Cancelled:
    """The user asked for an end. ``found`` as in `GaveUp`."""

    found: Payload | None = None


@dataclass(frozen=True)
class Superseded:
    """Another attempt has taken over; this one changes nothing any more."""


Outcome = Succeeded | Delegated | Yielded | RetryIn | Failed | Released | Cancelled | Superseded
