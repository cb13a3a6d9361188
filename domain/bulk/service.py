"""Bulk jobs of every kind: request them, plan their ledgers, and delegate the items to lanes."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from domain import metrics, tracing
from domain.bulk.chunks import LaneSteps
from domain.bulk.expand import BulkExpandRequest
from domain.bulk.ledger import AS_LANES_LOST, PLAN_SECONDS, Ledger
from domain.bulk.model import Item, ItemCode, ItemStatus, Lane
from domain.bulk.operation import BulkOperation
from domain.bulk.preview import DryRuns, Plan, preview
from domain.bulk.requests import BulkRequest, Selection
from domain.db.database import Database
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.attempt import ClaimedJob, Delegated, Failed, Outcome, Payload, Succeeded
from domain.jobs.isolation import each_in_own_transaction
from domain.jobs.kinds import FailedJobs, JobHandler, JobKind, SucceededJobs
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobRepository, require_job
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.webhooks.outbox import record_ended_jobs
from domain.projects.quota import Room, has_limits
from domain.storage.context import Grant, Stopped, StopReason

_MAX_LANES: Final = 8
_LANE_ATTEMPTS: Final = 3
#: Maximum number of jobs that `BulkService.assign_lanes` handles in one run.
_MAX_ASSIGNED: Final = 20
_NOTHING_SELECTED: Final[Payload] = {"code": "nothing-selected", "detail": "No volume matches the selection."}


class BulkService(JobHandler):
    """Bulk jobs of any kind, for the API and schedules; and for workers, their handler.

    Planning changes nothing on the storage, so there is nothing to seal.
    """

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        operations: Mapping[str, BulkOperation],
        *,
        max_attempts: int,
        max_concurrent: int,
        busy_seconds: float,
    ) -> None:
        """Create the service.

        Args:
            database: Where the jobs and their ledgers are.
            queue: Transports the messages.
            operations: By the kind of the bulk job.
            max_attempts: Of each job; a lane has fewer.
            max_concurrent: The maximum that a request may have.
            busy_seconds: How long a busy volume is retried before its item is skipped.
        """
        self._database = database
        self._queue = queue
        self._operations = operations
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent
        self._busy_seconds = busy_seconds
        self._dry_runs = DryRuns()

    async def items(
        self, job_id: UUID, status: ItemStatus | None, *, project_id: UUID, after: UUID | None, limit: int
    ) -> Sequence[Item]:
        """Read up to ``limit`` + 1 items of the ledger of a job of a project, by volume id.

        Raises:
            JobNotFound: no such job.
        """
        async with self._database.transaction() as session:
            require_job(await JobRepository(session).get(job_id), job_id, project_id)
            return await Ledger(session).page(job_id, status, after=after, limit=limit)

    # --- request -----------------------------------------------------------------------------------------

    async def request(self, request: BulkRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk job.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds, or a member is for schedules only.
        """
        request.refuse_schedule_members()
        self.check(request)  # before the transaction; `add` checks it for schedules too
        async with accepting(self._database, origin) as accepted:
            job = accepted.job = await self.add(
                accepted.session, request, project_id=origin.actor.project_id, created_by=origin.caller
            )
        await self._queue.dispatch([job.message])
        return job

    async def add(self, session: AsyncSession, request: BulkRequest, *, project_id: UUID, **columns: Any) -> Job:
        """Insert the job of a project in the caller's transaction; schedules pass ``schedule_id``, ``scheduled_for``.

        The caller dispatches it after the commit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        time = columns.get("scheduled_for") or datetime.now(UTC)
        params = request.job_params(time=time, schedule_id=columns.get("schedule_id"))
        return await self._add(session, request.kind, params, project_id=project_id, **columns)

    async def retry(self, session: AsyncSession, ended: Job, _: Room) -> Job:
        """Insert a job for the items of an ended one that failed or were not started.

        A job that ended before it was planned has no items; its retry selects volumes anew.
        """
        params = ended.params
        if ended.total is not None:  # its ledger has the volumes: ten thousand ids need not be stored once more
            selection = params["selection"] | {"ids": None}
            params = params | {"selection": selection, "missed_by": str(ended.id)}
        request_type = self._operations[ended.kind].request_type
        params = request_type.retry_params(params, time=datetime.now(UTC))
        return await self._add(session, ended.kind, params, project_id=ended.project_id, **retry_columns(ended))

    def check(self, request: BulkRequest) -> None:
        """Check a request against the configured limit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        request.require_within(self._max_concurrent)

    async def preview(self, request: BulkExpandRequest, *, project_id: UUID) -> Plan:
        """Return what a bulk expansion would do in a project, by the last measured usage. Changes nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
            TooManyDryRuns: too many wait for their turn.
        """
        self.check(request)
        async with self._dry_runs.turn():
            return await preview(self._database, request, project_id)

    async def _add(self, session: AsyncSession, kind: str, params: dict[str, Any], **columns: Any) -> Job:
        job = new_job(kind, {**params, "fence_version": 0}, max_attempts=self._max_attempts, **columns)
        return await JobRepository(session).add(job)

    # --- plan --------------------------------------------------------------------------------------------

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Insert the job's volumes into the ledger. A job that has none is told so, or fails if it requires any.

        Raises:
            Stopped: this attempt lost the job meanwhile; the plan is rolled back.
        """
        grant.check()
        selection = Selection.from_json(job.params["selection"])
        async with self._database.transaction(statement_seconds=PLAN_SECONDS) as session:
            ledger = Ledger(session)
            if "missed_by" in job.params:
                await ledger.plan_retry(job.id, UUID(job.params["missed_by"]))
            else:
                await ledger.plan(job.id, job.project_id, selection)
            planned = await ledger.has_unfinished(job.id)
            # Checked last, so that the job's row is locked only for the moment of the commit.
            if not await ParentRepository(session).lock_held(job.id, epoch=job.epoch, worker_id=job.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
        if planned:
            return Delegated({})
        return Failed(_NOTHING_SELECTED) if selection.require_any else Succeeded(_NOTHING_SELECTED)

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Add lanes to planned jobs; those without items have ended."""
        for job, result in succeeded:
            # A job that selected nothing is settled as ended, so that there is nothing to count.
            if status := await recount(session, job.id):
                metrics.current().jobs_finished(job.kind, status)
            elif result != _NOTHING_SELECTED:
                await self._add_lanes(session, job)
        if empty := [job.id for job, result in succeeded if result == _NOTHING_SELECTED]:
            await record_ended_jobs(session, empty)

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Delete the plans of jobs that failed before they got lanes; no volume has been acquired yet."""
        for job, _ in failed:
            await Ledger(session).delete_plan(job.id)

    # --- lanes -------------------------------------------------------------------------------------------

    def lane_steps(self, lane: Lane) -> LaneSteps:
        """Return the steps of one attempt at a lane."""
        operation = self._operations[lane.params["of"]]
        return LaneSteps(lane, operation, self._database, self._queue, self._busy_seconds)

    async def assign_lanes(self) -> int:
        """Add lanes to jobs that have no live lane left, or fail those that had too many. Return the number of jobs."""
        async with self._database.transaction() as session:
            without_lanes = await ParentRepository(session).without_lanes(limit=_MAX_ASSIGNED)
        handled = await each_in_own_transaction(
            self._database,
            without_lanes,
            self._assign_lanes,
            on_error=lambda session, job_id: ParentRepository(session).defer(job_id),
        )
        for job in handled:
            await self._queue.announce(job.id)
        return len(handled)

    async def _assign_lanes(self, session: AsyncSession, job_id: UUID) -> Job | None:
        parents, ledger = ParentRepository(session), Ledger(session)
        job = await parents.lock_without_lanes(job_id)
        if job is None:
            return None
        if not await ledger.has_unfinished(job.id):
            if status := await recount(session, job.id):
                metrics.current().jobs_finished(job.kind, status)
        elif job.attempt <= job.max_attempts:
            if await parents.has_failed_lanes(job.id):  # else there were more backends than slots
                job.attempt += 1  # of a parent, this counts how often it was given lanes
            job.version += 1
            lanes = await self._add_lanes(session, ClaimedJob.from_row(job), last=job.attempt > job.max_attempts)
            # The epoch of a new lane starts at 0 again. Versions are incremented, so that its fences are nevertheless
            # above those that the dead lanes left on the backend.
            for lane in {lane.params["backend"]: lane for lane in lanes}.values():
                items = await ledger.reassign(job.id, lane.params["backend"], lane.id)
                await self._operations[job.kind].raise_fences(session, job.id, items)
        else:
            # The last lanes could not finish these items either.
            claimed = await ledger.close(job.id, ItemStatus.CLAIMED, AS_LANES_LOST)
            pending = await ledger.close(job.id, ItemStatus.PENDING, AS_LANES_LOST)
            await self._operations[job.kind].give_up(session, job.id, claimed)
            count = len(claimed) + len(pending)
            if status := await parents.add_counts(job.id, failed=count):
                metrics.current().jobs_finished(job.kind, status)
            metrics.current().items_finished({(ItemStatus.FAILED, ItemCode.LANES_LOST): count})
        return job

    async def _add_lanes(self, session: AsyncSession, job: ClaimedJob, *, last: bool = False) -> list[Job]:
        """Add undispatched lanes, each for one backend; their slots add up to ``max_concurrent`` over all workers.

        After too many lanes have failed, add a single ``last`` one for each backend, which only seals and fails what
        the others left.
        """
        counts = await Ledger(session).unfinished_by_backend(job.id)
        slots = dict.fromkeys(counts, 1) if last else slots_per_backend(counts, job.params["max_concurrent"])
        names = self._operations[job.kind].lane_params
        params = {name: job.params[name] for name in names if name in job.params}  # an earlier version has fewer
        limited = await has_limits(session, job.project_id)
        params |= {"of": job.kind, "last": last, "limited": limited, "fence_version": 0}
        lanes = []
        with tracing.caused_by(job.traceparent):
            for backend, its_slots in slots.items():
                slot_counts = slots_per_lane(its_slots, max(1, _MAX_LANES // len(slots)))
                of_backend = {"backend": backend, "lanes": len(slot_counts)}
                lanes += [
                    new_job(
                        JobKind.BULK_LANE,
                        params | of_backend | {"slots": count},
                        project_id=job.project_id,
                        max_attempts=_LANE_ATTEMPTS,
                        parent_id=job.id,
                        backend=backend or None,
                        created_by=job.created_by,
                        dispatched_at=null(),  # undispatched: `dispatch_due` sends the message after the commit
                    )
                    for count in slot_counts
                ]
        return [await JobRepository(session).add(lane) for lane in lanes]


async def recount(session: AsyncSession, job_id: UUID) -> JobStatus | None:
    """Set a job's counters from its ledger, which ends the job if all items are finished. Return its status then."""
    parents = ParentRepository(session)
    await parents.set_counts(job_id, **await Ledger(session).counts(job_id))
    return await parents.add_counts(job_id)


def slots_per_backend(items: Mapping[str, int], max_concurrent: int) -> dict[str, int]:
    """Divide ``max_concurrent`` slots among backends, by their numbers of ``items``; each gets at least one.

    If there are fewer slots than backends, those with the fewest items get none: they have their turn afterwards.
    """
    largest = sorted(items, key=lambda backend: -items[backend])[:max_concurrent]
    slots = dict.fromkeys(largest, 1)
    for _ in range(max_concurrent - len(largest) if largest else 0):
        slots[max(largest, key=lambda backend: items[backend] / slots[backend])] += 1
    return slots


def slots_per_lane(slots: int, max_lanes: int = _MAX_LANES) -> list[int]:
    """Divide slots as evenly as possible among up to ``max_lanes`` lanes."""
    lanes = min(slots, max_lanes)
    each, remainder = divmod(slots, lanes)
    return [each + (number < remainder) for number in range(lanes)]
