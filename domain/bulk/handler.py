"""The handler of bulk jobs of every kind: plan the ledger, then delegate its items to lanes."""

from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import PLAN_SECONDS, Ledger
from domain.bulk.selection import Selection
from domain.bulk.service import BulkService, recount
from domain.db.database import Database
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, JobHandler, SucceededJobs
from domain.jobs.model import Job
from domain.jobs.outcomes import Delegated, Failed, Outcome, Payload, Succeeded
from domain.jobs.store.parents import ParentRepository
from domain.storage.context import Grant, Stopped, StopReason

_NOTHING_SELECTED: Final[Payload] = {"code": "nothing-selected", "detail": "No volume matches the selection."}


class BulkHandler(JobHandler):
    """The handler of bulk jobs. Planning changes nothing on the storage, so there is nothing to seal."""

    def __init__(self, database: Database, bulk: BulkService) -> None:
        self._database = database
        self._bulk = bulk

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Insert the job's volumes into the ledger. A job that has none is told so, or fails if it requires any.

        Raises:
            Stopped: this attempt lost the job meanwhile; the plan is rolled back.
        """
        grant.check()
        required = Selection.from_json(job.params["selection"]).require_any
        async with self._database.transaction(statement_seconds=PLAN_SECONDS) as session:
            ledger = Ledger(session)
            if "missed_by" in job.params:
                await ledger.plan_retry(job.id, UUID(job.params["missed_by"]))
            else:
                await ledger.plan(job.id, Selection.from_json(job.params["selection"]))
            planned = await ledger.has_unfinished(job.id)
            # Checked last, so that the job's row is locked only for the moment of the commit.
            if not await ParentRepository(session).lock_held(job.id, epoch=job.epoch, worker_id=job.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
        if planned:
            return Delegated({})
        return Failed(_NOTHING_SELECTED) if required else Succeeded(_NOTHING_SELECTED)

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Add lanes to planned jobs; those without items have ended."""
        for job, result in succeeded:
            if not await recount(session, job.id) and result != _NOTHING_SELECTED:
                await self._bulk.add_lanes(session, job)

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Delete the plans of jobs that failed before they got lanes; no volume has been acquired yet."""
        for job, _ in failed:
            await Ledger(session).delete_plan(job.id)

    async def retry(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the items that failed or were not started."""
        return await self._bulk.add_retry(session, ended)
