"""Says that this worker is alive and at its jobs, and hears which of them are to end."""

import asyncio
from collections.abc import Mapping
from uuid import UUID

import structlog

from domain.errors import DatabaseUnavailable
from domain.jobs.engine import JobEngine
from domain.jobs.store.leases import BEATS_PER_LEASE, MIN_HEARTBEAT_TIMEOUT, Progress, heartbeat_timeout
from domain.storage.context import StopReason
from worker.liveness import NO_LIVENESS_FILE, LivenessFile
from worker.runner import Running

log = structlog.get_logger(__name__)


class Heartbeat:
    """Extends the leases of all jobs at work in one statement, again and again."""

    def __init__(
        self,
        engine: JobEngine,
        running: Mapping[UUID, Running],
        *,
        lease: float,
        stall: float,
        min_timeout: float = MIN_HEARTBEAT_TIMEOUT,
        pulse: LivenessFile = NO_LIVENESS_FILE,
    ) -> None:
        """``lease`` in seconds; a job without progress for ``stall`` seconds is let go."""
        self._engine = engine
        self._liveness = pulse
        self._running = running
        self._interval = lease / BEATS_PER_LEASE
        self._stall = stall
        self._patience = heartbeat_timeout(lease, min_timeout)
        self._is_beating = False
        self._outage_noted = False
        self._is_complete = True

    async def run_forever(self) -> None:
        """Beat at regular intervals; sooner again while PostgreSQL is away or has rows locked."""
        while True:
            try:
                async with asyncio.timeout(self._patience):  # a connection may be dead without anybody knowing
                    await self.beat()
            except (DatabaseUnavailable, TimeoutError):
                log.warning("heartbeat.missed", jobs=len(self._running))
                self.note_outage()
            except Exception:
                log.exception("heartbeat.failed")  # a heart that stops for good would lose every job
                self.note_outage()
            well = self.is_beating and self._is_complete
            await asyncio.sleep(self._interval if well else min(self._interval / 5, 1.0))

    @property
    def is_beating(self) -> bool:
        """Whether nobody has found PostgreSQL away since the last beat."""
        return self._is_beating

    def note_outage(self) -> None:
        """Note that PostgreSQL was away: nobody is rescued before every live worker could renew its leases."""
        self._outage_noted = True
        self._is_beating = False
        self._engine.note_outage()

    async def beat(self) -> None:
        """Extend what is still ours, stop what is not, pass on what users want stopped; tell how far copies are.

        Raises:
            DatabaseUnavailable: nothing was extended; the grants run out by themselves.
        """
        asked = {job_id: run for job_id, run in self._running.items() if not run.grant.lease.is_stalled(self._stall)}
        self._outage_noted = False
        renewed = await self._engine.renew(asked, _progress(asked))
        self._is_beating = not self._outage_noted  # housekeeping may have found PostgreSQL away meanwhile
        for renewal in renewed.renewals:
            grant = asked[renewal.job_id].grant
            grant.extend(renewed.deadline)
            if renewal.cancel_requested:
                grant.stop(StopReason.CANCELLED)
        for job_id in renewed.lost:  # somebody else's by now, or settled while we asked
            asked[job_id].grant.stop(StopReason.LEASE_LOST)
        self._is_complete = len(renewed.renewals) + len(renewed.lost) == len(asked)
        self._liveness.touch()


def _progress(running: Mapping[UUID, Running]) -> dict[UUID, Progress]:
    """How far those are that copy something; their threads report it as they go."""
    grants = ((job_id, run.grant) for job_id, run in running.items())
    return {job_id: Progress(*grant.lease.copied) for job_id, grant in grants if grant.lease.copied is not None}
