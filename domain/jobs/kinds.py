"""The job kinds, and what each of them provides: a handler. `domain.services` builds the table of handlers."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from domain.errors import JobNotRetryable
from domain.jobs.attempt import ClaimedJob, Outcome, Payload
from domain.jobs.model import Job
from domain.projects.quota import Room
from domain.storage.context import Fence, Grant

#: Jobs that succeeded or were delegated, each with its result.
SucceededJobs = Sequence[tuple[ClaimedJob, Payload]]
#: Jobs that failed or were cancelled, each with the state found on the storage; None if that is unknown.
FailedJobs = Sequence[tuple[ClaimedJob, Payload | None]]
#: Jobs whose fence the storage has refused, each with the higher one that is stored there.
RefusedJobs = Sequence[tuple[ClaimedJob, Fence]]


class JobKind(enum.StrEnum):
    """The kinds of this version. A row may have another kind: a newer version, or another package, has added it."""

    VOLUME_CREATE = "volume.create"
    #: Creates a volume with the bytes of another one.
    VOLUME_CLONE = "volume.clone"
    VOLUME_EXPAND = "volume.expand"
    VOLUME_DELETE = "volume.delete"
    #: Mounts a volume on a node, for one holder; the node does it.
    VOLUME_ATTACH = "volume.attach"
    #: Takes a volume from one holder; the node unmounts it with the last one.
    VOLUME_DETACH = "volume.detach"
    #: Takes a volume from a node that does not answer: its bytes move to a place that the node cannot write to.
    VOLUME_ISOLATE = "volume.isolate"
    SNAPSHOT_TAKE = "snapshot.take"
    SNAPSHOT_RESTORE = "snapshot.restore"
    SNAPSHOT_CLONE = "snapshot.clone"
    SNAPSHOT_DELETE = "snapshot.delete"
    BULK_EXPAND = "bulk.expand"
    BULK_SNAPSHOT = "bulk.snapshot"
    #: The child of a bulk job that works on a part of its ledger.
    BULK_LANE = "bulk.lane"
    #: Tells a webhook of an event.
    WEBHOOK_DELIVER = "webhook.deliver"


#: The kinds of jobs that only the agent of a node can carry out.
NODE_KINDS: Final = (JobKind.VOLUME_ATTACH, JobKind.VOLUME_DETACH)
#: The kinds of jobs that have a ledger.
BULK_KINDS: Final = frozenset({JobKind.BULK_EXPAND, JobKind.BULK_SNAPSHOT})


class JobHandler(ABC):
    """The code of one job kind. Only `perform` is required."""

    @abstractmethod
    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Do the work, without an open transaction. May be repeated, and may be overtaken by a later attempt.

        Raises:
            StorageError: a `PermanentStorageError` fails the job. `FenceRefused` ends only this attempt; so does
                `Stopped`, unless the user has cancelled the job. After any other error the job is retried, as long as
                attempts are left (`StorageBusy` costs none).
        """

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:  # noqa: B027 (optional)
        """Record the effects of successful jobs, in the transaction that settles them."""

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload | None:  # noqa: B027 (optional)
        """Bar earlier attempts of a failed or cancelled job from publishing; return what they left on the storage."""

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:  # noqa: B027 (optional)
        """Release the volumes and snapshots of failed jobs, in the transaction that settles them."""

    async def raise_fences(self, session: AsyncSession, refused: RefusedJobs) -> None:  # noqa: B027 (optional)
        """Raise the versions of volumes and snapshots above the fences stored, while the jobs are being requeued.

        The fences of the jobs themselves are raised already, in the same transaction.
        """

    async def retry(self, session: AsyncSession, ended: Job, room: Room) -> Job:  # noqa: ARG002 (of the signature)
        """Insert a job that requests again what an ended one did not achieve; take what it adds from the ``room``.

        Raises:
            JobNotRetryable: jobs of this kind cannot be retried.
            QuotaExceeded: there is not enough room in the project.
        """
        raise JobNotRetryable(job_status=ended.status)


JobHandlers = Mapping[str, JobHandler]
