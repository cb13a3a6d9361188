"""One attempt at a job that is ours: do the work, and make an outcome of whatever happens."""

from collections.abc import Mapping
from typing import Final

import structlog

from domain.errors import CisternError
from domain.jobs.claimed import ClaimedJob
from domain.jobs.outcomes import Cancelled, Failed, Outcome, Payload, Released, RetryIn, Superseded
from domain.jobs.retry import WORKER_LOST, RetryPolicy, describe
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.services import Handler
from domain.storage.context import Grant, Stopped, StopReason
from domain.storage.errors import FenceRefused, PermanentStorageError, StorageBusy, TransientStorageError

_STOPPED: Final[dict[StopReason, Outcome]] = {
    StopReason.CANCELLED: Cancelled(),
    StopReason.SHUTDOWN: Released(),
    StopReason.LEASE_LOST: Superseded(),
}

log = structlog.get_logger(__name__)


class Attempts:
    """Has jobs done by whoever handles their kind."""

    def __init__(self, handlers: Mapping[str, Handler], retry_policy: RetryPolicy) -> None:
        """``handlers`` by kind; the policy decides about failures that may pass."""
        self._handlers = handlers
        self._retry_policy = retry_policy

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Do the work, and find out what is to be found out if it comes to nothing."""
        outcome = await self._attempt(job, grant)
        if isinstance(outcome, Failed | Cancelled):
            return await self._seal(job, grant, outcome)
        return outcome

    async def _attempt(self, job: ClaimedJob, grant: Grant) -> Outcome:
        if job.cancel_requested_at is not None:
            return Cancelled()
        if job.attempt > job.max_attempts:  # its last one died with its worker; all that is left is to end it
            return Failed(job.error or WORKER_LOST)
        try:
            return await self._handlers[job.kind].perform(job, grant)
        except CisternError as error:
            return self._decide(job, error)
        except Exception:
            log.exception("job.handler_error")
            return self._decide(job, CisternError())

    def _decide(self, job: ClaimedJob, error: CisternError) -> Outcome:
        """Turn a failure into a decision."""
        match error:
            case Stopped(reason=reason):
                return _STOPPED[reason]
            case FenceRefused():
                return Superseded()
            case StorageBusy():
                return self._retry_policy.wait(error)
            case PermanentStorageError():
                return Failed(describe(error))
            case _:
                return self._retry_policy.decide(error, attempt=job.attempt, max_attempts=job.max_attempts)

    async def _seal(self, job: ClaimedJob, grant: Grant, outcome: Failed | Cancelled) -> Outcome:
        """Shut earlier attempts out and see what is on the storage, before the volume is let go."""
        try:
            found: Payload | None = await self._handlers[job.kind].seal(job, grant)
        except StorageBusy as error:
            return self._retry_policy.wait(error)
        except FenceRefused:
            return Superseded()
        except TransientStorageError as error:
            if self._may_claim_again(job):
                return self._retry(job, error)
            found = None
        except CisternError as error:  # of the storage, or a backend that is configured no more
            log.warning("storage.state_unknown", error=error.message)
            found = None
        except Exception:
            log.exception("job.handler_error")
            if self._may_claim_again(job):
                return self._retry(job, CisternError())
            found = None
        return Cancelled(found) if isinstance(outcome, Cancelled) else Failed(outcome.error, found)

    def _may_claim_again(self, job: ClaimedJob) -> bool:
        """Tell whether to try again: a volume must not be let go before earlier attempts are shut out, but some day."""
        return job.attempt < job.max_attempts + EXTRA_CLAIMS

    def _retry(self, job: ClaimedJob, error: CisternError) -> Outcome:
        return RetryIn(self._retry_policy.delay(job.attempt), describe(error))
