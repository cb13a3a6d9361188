"""One attempt at a claimed job: do the work, and turn whatever happens into an outcome."""

from typing import Final

import structlog

from domain.db.database import was_not_executed
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.attempt import (
    WORKER_LOST,
    Cancelled,
    ClaimedJob,
    Failed,
    FenceBehind,
    Outcome,
    Payload,
    Released,
    RetryIn,
    RetryPolicy,
    Superseded,
    describe,
)
from domain.jobs.kinds import JobHandlers
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.errors import (
    BackendUnavailable,
    FenceRefused,
    PermanentStorageError,
    StorageBusy,
    TransientStorageError,
)

_OUTCOME_BY_STOP_REASON: Final[dict[StopReason, Outcome]] = {
    StopReason.CANCELLED: Cancelled(),
    StopReason.SHUTDOWN: Released(),
    StopReason.LEASE_LOST: Superseded(),
}

log = structlog.get_logger(__name__)


class AttemptPerformer:
    """Performs jobs with the handlers of their kinds."""

    def __init__(self, handlers: JobHandlers, retry_policy: RetryPolicy) -> None:
        """Take ``handlers`` by job kind; ``retry_policy`` decides on transient failures."""
        self._handlers = handlers
        self._retry_policy = retry_policy

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Do the work. If the job fails or is cancelled, seal its volume and find out what is on the storage."""
        outcome = await self._attempt(job, grant)
        if isinstance(outcome, Failed | Cancelled):
            return await self._seal(job, grant, outcome)
        return outcome

    async def _attempt(self, job: ClaimedJob, grant: Grant) -> Outcome:
        if job.cancel_requested_at is not None:
            return Cancelled()
        if job.attempt > job.max_attempts:  # its last attempt died with its worker; what remains is to seal and fail
            return Failed(job.error or WORKER_LOST)
        try:
            return await self._handlers[job.kind].perform(job, grant)
        except CisternError as error:
            return self._decide(job, error)
        except Exception:
            log.exception("job.handler_error")
            return self._decide(job, CisternError())

    def _decide(self, job: ClaimedJob, error: CisternError) -> Outcome:
        """Return the outcome of a failed attempt."""
        match error:
            case Stopped(reason=reason):
                return _OUTCOME_BY_STOP_REASON[reason]
            case FenceRefused():
                return self._refused(error)
            case StorageBusy() | BackendUnavailable():
                return self._retry_policy.wait(error)
            # Any other failure of PostgreSQL may be caused by this job, and must not be repeated forever.
            case DatabaseUnavailable() if was_not_executed(error):
                return self._retry_policy.wait(error)
            case PermanentStorageError():
                return Failed(describe(error))
            case _:
                return self._retry_policy.decide(error, attempt=job.attempt, max_attempts=job.max_attempts)

    async def _seal(self, job: ClaimedJob, grant: Grant, outcome: Failed | Cancelled) -> Outcome:
        """Shut earlier attempts out and find the state of the storage, before the volume is released."""
        try:
            found: Payload | None = await self._handlers[job.kind].seal(job, grant)
        except (StorageBusy, BackendUnavailable) as error:
            return self._retry_policy.wait(error)
        except FenceRefused as error:
            return self._refused(error)
        except TransientStorageError as error:
            if self._may_claim_again(job):
                return self._retry(job, error)
            found = None
        except CisternError as error:  # a permanent storage error
            log.warning("storage.state_unknown", error=error.message)
            found = None
        except Exception:
            log.exception("job.handler_error")
            if self._may_claim_again(job):
                return self._retry(job, CisternError())
            found = None
        return Cancelled(found) if isinstance(outcome, Cancelled) else Failed(outcome.error, found)

    def _refused(self, error: FenceRefused) -> Outcome:
        if error.stored is None:
            return Superseded()
        return FenceBehind(Fence(*error.stored), self._retry_policy.delay(1), describe(error))

    def _may_claim_again(self, job: ClaimedJob) -> bool:
        """Return whether sealing may be retried.

        A volume must not be released before earlier attempts are shut out; but no job may be retried forever.
        """
        return job.attempt < job.max_attempts + EXTRA_CLAIMS

    def _retry(self, job: ClaimedJob, error: CisternError) -> Outcome:
        return RetryIn(self._retry_policy.delay(job.attempt), describe(error))
