"""The heartbeat of a worker: renews the leases of its jobs, and shows that it is alive and whether its storage hangs.

`Heartbeat`      renews all leases in PostgreSQL, and stops jobs that were cancelled or lost
`LivenessFile`   is touched after each heartbeat, for health checks from outside
`StallDetector`  finds jobs whose storage hangs; the heartbeat no longer renews their leases
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self
from uuid import UUID

import structlog

from domain.errors import ConfigurationError, DatabaseUnavailable
from domain.jobs.attempt import subject_fields
from domain.jobs.engine import JobEngine
from domain.jobs.store.leases import (
    BEATS_PER_LEASE,
    MIN_HEARTBEAT_TIMEOUT,
    Progress,
    SlowCall,
    heartbeat_timeout,
)
from domain.logs import log_fields
from domain.storage.context import BlockingCall, StallLimits, StopReason
from worker.runner import Execution

_STALL_CHECK_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class LivenessFile:
    """A file whose modification time is that of the last heartbeat which reached PostgreSQL; or no file at all."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Create the file, or touch the one of an earlier worker.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        try:
            if path is not None:
                path.open("a").close()  # fails for a directory, which `touch` accepts
                path.touch()
        except OSError as error:
            raise ConfigurationError(f"CISTERN_HEARTBEAT_FILE: {error.strerror}: {str(path)!r}") from error
        return cls(path)

    def touch(self) -> None:
        """Touch the file. A failure is only logged: jobs are not affected, although the worker looks dead."""
        try:
            if self._path is not None:
                self._path.touch()
        except OSError as error:
            log.warning("liveness.write_failed", error=str(error))


NO_LIVENESS_FILE: Final = LivenessFile(None)


class Heartbeat:
    """Periodically renews the leases of all running jobs, in one statement."""

    def __init__(
        self,
        engine: JobEngine,
        running: Mapping[UUID, Execution],
        *,
        lease: float,
        stall: StallLimits,
        min_timeout: float = MIN_HEARTBEAT_TIMEOUT,
        liveness_file: LivenessFile = NO_LIVENESS_FILE,
    ) -> None:
        """Prepare a heartbeat.

        Args:
            engine: Renews the leases.
            running: The jobs of this worker.
            lease: Duration of a lease in seconds.
            stall: When a job counts as stalled; then its lease is no longer renewed.
            min_timeout: Minimum timeout of one heartbeat in seconds.
            liveness_file: Is touched after each heartbeat.
        """
        self._engine = engine
        self._liveness_file = liveness_file
        self._running = running
        self._interval = lease / BEATS_PER_LEASE
        self._stall = stall
        self._timeout = heartbeat_timeout(lease, min_timeout)
        self._is_beating = False
        self._outage_noted = False
        self._is_complete = True

    async def run_forever(self) -> None:
        """Beat at regular intervals, and more often while PostgreSQL is unavailable or rows are locked."""
        while True:
            try:
                async with asyncio.timeout(self._timeout):  # a dead connection may never report an error
                    await self.beat()
            except (DatabaseUnavailable, TimeoutError):
                log.warning("heartbeat.missed", jobs=len(self._running))
                self.note_outage()
            except Exception:
                log.exception("heartbeat.failed")  # this task must never exit: every lease would expire
                self.note_outage()
            all_renewed = self.is_beating and self._is_complete
            await asyncio.sleep(self._interval if all_renewed else min(self._interval / 5, 1.0))

    @property
    def is_beating(self) -> bool:
        """Whether the last heartbeat succeeded and no outage of PostgreSQL was noted since."""
        return self._is_beating

    def note_outage(self) -> None:
        """Note that PostgreSQL was unavailable: no orphan is rescued until every live worker could renew its leases."""
        self._outage_noted = True
        self._is_beating = False
        self._engine.note_outage()

    async def beat(self) -> None:
        """Renew the leases of all jobs that are not stalled, store their progress, stop what has to end.

        Raises:
            DatabaseUnavailable: no lease was renewed; the grants expire by themselves.
        """
        to_renew = {job_id: run for job_id, run in self._running.items() if not run.grant.state.is_stalled(self._stall)}
        self._outage_noted = False
        renewed = await self._engine.renew(to_renew, self._progress(to_renew))
        self._is_beating = not self._outage_noted  # maintenance may have noted an outage during the statement
        for renewal in renewed.renewals:
            grant = to_renew[renewal.job_id].grant
            grant.extend(renewed.deadline)
            if renewal.cancel_requested:
                grant.stop(StopReason.CANCELLED)
        for job_id in renewed.lost:  # claimed by another worker, or settled here during the statement
            to_renew[job_id].grant.stop(StopReason.LEASE_LOST)
        self._is_complete = len(renewed.renewals) + len(renewed.lost) == len(to_renew)
        self._liveness_file.touch()

    def _progress(self, running: Mapping[UUID, Execution]) -> dict[UUID, Progress]:
        """Return the progress of jobs that copy data, and the slow calls that jobs wait for."""
        progress = {}
        for job_id, run in running.items():
            state = run.grant.state
            call = state.slow_call(self._stall)
            if state.copied is not None or call is not None:
                done, total = state.copied or (None, None)
                progress[job_id] = Progress(done, total, self._slow_call(call))
        return progress

    def _slow_call(self, call: BlockingCall | None) -> SlowCall | None:
        return None if call is None else SlowCall(call.name, call.duration, self._stall.call_seconds)


class StallDetector:
    """Marks and logs the jobs of this worker whose storage hangs, and logs when they fill all of its slots.

    A hung thread cannot be ended. It keeps its slot, and another worker gets its job once the lease has expired.
    """

    def __init__(self, running: Mapping[UUID, Execution], *, stall: StallLimits, slots: int) -> None:
        """``stall`` says when a job counts as stalled."""
        self._running = running
        self._stall = stall
        self._slots = slots
        self._stalled: dict[UUID, Execution] = {}
        self._slow: frozenset[BlockingCall] = frozenset()

    async def run_forever(self) -> None:
        """Check periodically."""
        while True:
            self.check()
            await asyncio.sleep(min(_STALL_CHECK_SECONDS, self._stall.seconds / 3))

    def check(self) -> None:
        """Mark stalled jobs, and log what changed since the last check."""
        for run in self._running.values():
            run.grant.state.stalled_at_last_check = run.grant.state.is_stalled(self._stall)
        stalled = {job_id: run for job_id, run in self._running.items() if run.grant.state.stalled_at_last_check}
        previous, self._stalled = self._stalled, stalled
        for job_id in stalled.keys() - previous.keys():
            log.error("job.stalled", seconds=self._stall.seconds, **_log_fields(stalled[job_id]))
        for job_id in previous.keys() - stalled.keys():
            log.info("job.recovered", job_id=str(job_id))
        if len(stalled) >= self._slots > len(previous):
            remedy = "storage hangs in every slot: repair the storage, or kill -9 this worker"
            log.error("worker.stuck", jobs=len(stalled), remedy=remedy)
        self._check_slow_calls()

    def _check_slow_calls(self) -> None:
        waiting = ((run, run.grant.state.slow_call(self._stall)) for run in self._running.values())
        slow = {call: run for run, call in waiting if call is not None}
        for call in slow.keys() - self._slow:
            limit = self._stall.call_seconds
            log.warning("job.slow_call", call=call.name, limit_seconds=limit, **_log_fields(slow[call]))
        self._slow = frozenset(slow)


def _log_fields(run: Execution) -> dict[str, object]:
    job = run.job
    ids = log_fields(job_id=job.id, backend=job.backend, **subject_fields(job))
    return {"kind": job.kind, **ids}
