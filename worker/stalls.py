"""Says which storage work stands still here, and that a worker full of it can do nothing more.

A thread that hangs cannot be ended. It keeps its slot, and its job goes elsewhere when the lease has run out.
"""

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import structlog

from domain.logs import log_fields
from worker.runner import Running

_CHECK_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class Stalls:
    """Looks after the jobs at work in this process."""

    def __init__(self, running: Mapping[UUID, Running], *, stall: float, slots: int) -> None:
        """``stall``: after so many seconds without progress a job counts as stalled."""
        self._running = running
        self._stall = stall
        self._slots = slots
        self._known: dict[UUID, Running] = {}

    async def run_forever(self) -> None:
        """Look again and again."""
        while True:
            self.check()
            await asyncio.sleep(min(_CHECK_SECONDS, self._stall / 3))

    def check(self) -> None:
        """Mark what stands still, and say what is new about it."""
        for run in self._running.values():
            run.grant.lease.stalled = run.grant.lease.is_stalled(self._stall)
        stalled = {job_id: run for job_id, run in self._running.items() if run.grant.lease.stalled}
        before, self._known = self._known, stalled
        for job_id in stalled.keys() - before.keys():
            self._log_stalled(stalled[job_id])
        for job_id in before.keys() - stalled.keys():
            log.info("job.recovered", job_id=str(job_id))
        if len(stalled) >= self._slots > len(before):
            log.error("worker.stuck", jobs=len(stalled), remedy="storage hangs in every slot: mend it, or kill -9 this")

    def _log_stalled(self, run: Running) -> None:
        job = run.job
        names = log_fields(job_id=job.id, volume_id=job.volume_id, snapshot_id=job.snapshot_id, backend=job.backend)
        log.error("job.stalled", kind=job.kind, seconds=self._stall, **names)
