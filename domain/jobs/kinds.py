"""What a job kind provides to the job engine. `domain.services` builds the table of all kinds."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.claimed import ClaimedJob
from domain.jobs.model import Job
from domain.jobs.outcomes import Payload

#: Jobs that succeeded or were delegated, each with its result.
SucceededJobs = Sequence[tuple[ClaimedJob, Payload]]
#: Jobs that failed or were cancelled, each with the state found on the storage; None if that is unknown.
FailedJobs = Sequence[tuple[ClaimedJob, Payload | None]]

Retry = Callable[[AsyncSession, Job], Awaitable[Job]]
Record = Callable[[AsyncSession, SucceededJobs], Awaitable[None]]
Abandon = Callable[[AsyncSession, FailedJobs], Awaitable[None]]


class Kind(Protocol):
    """The database operations of a job kind."""

    @property
    def retry(self) -> Retry:
        """Request an ended job again, as a new job that refers to it."""

    @property
    def record(self) -> Record:
        """Record the effects of successful jobs, in the transaction that settles them."""

    @property
    def abandon(self) -> Abandon:
        """Put the volumes or snapshots of failed jobs into a usable state, given what was found on the storage."""


Kinds = Mapping[str, Kind]
