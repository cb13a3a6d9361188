"""What the job book must know of a kind of job; `domain.services` holds the one table of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.claimed import ClaimedJob
from domain.jobs.model import Job
from domain.jobs.outcomes import Payload

#: Jobs that are done, each with its result.
SucceededJobs = Sequence[tuple[ClaimedJob, Payload]]
#: Jobs that were given up, each with what was found on the storage.
FailedJobs = Sequence[tuple[ClaimedJob, Payload | None]]

Retry = Callable[[AsyncSession, Job], Awaitable[Job]]
Record = Callable[[AsyncSession, SucceededJobs], Awaitable[None]]
Abandon = Callable[[AsyncSession, FailedJobs], Awaitable[None]]


class Kind(Protocol):
    """The parts of a use case that touch the database."""

    @property
    def retry(self) -> Retry:
        """Request once more what an ended job was for, as a new job linked to it."""

    @property
    def record(self) -> Record:
        """Write down the effects of jobs that are done, in the transaction that settles them."""

    @property
    def abandon(self) -> Abandon:
        """Leave things usable when jobs are given up, given what was found on the storage."""


Kinds = Mapping[str, Kind]
