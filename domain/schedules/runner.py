"""Starts runs: those that are due, exactly once over any number of workers, and those requested by users.

A run and its job are inserted in the transaction that locks the schedule and sets `next_run_at`. A worker that finds
the schedule locked, or already advanced, skips it. A process that dies before the commit has done nothing; one that
dies after the commit, before the message is sent, leaves an undispatched job, which maintenance dispatches.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain import metrics, tracing
from domain.audit.model import Actor
from domain.audit.repository import add_entries
from domain.db.database import Database
from domain.errors import DatabaseUnavailable, Refused, ScheduleBusy, ScheduleOwnerGone
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting, entry_of
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.webhooks.model import EventType
from domain.jobs.webhooks.outbox import Event, record_events
from domain.projects.quota import Room, lock_room_if_free
from domain.schedules.actions import Actions
from domain.schedules.cron import PlannedRun, Span, plan_run
from domain.schedules.model import Run, RunOutcome, Schedule
from domain.schedules.repository import Clock, ScheduleRepository, postgresql_clock

#: Returns whether somebody with this name may own schedules in a project.
MayOwn = Callable[[AsyncSession, UUID, str], Awaitable[bool]]

log = structlog.get_logger(__name__)


class ScheduleRunner:
    """Starts the runs of schedules."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        actions: Actions,
        *,
        may_own: MayOwn,
        clock: Clock = postgresql_clock,
    ) -> None:
        """Create the runner; ``may_own`` finds out whether the owner of a schedule may still do what it does."""
        self._may_own = may_own
        self._database = database
        self._queue = queue
        self._actions = actions
        self._clock = clock

    async def run_now(self, schedule_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a run outside of the schedule's times; the schedule may be paused.

        Raises:
            ScheduleNotFound: no such schedule.
            ScheduleBusy: the job of the previous run is still active.
            Refused: the action is no longer possible with its parameters.
        """
        async with accepting(self._database, origin) as accepted:
            session = accepted.session
            schedule = await ScheduleRepository(session).get(schedule_id, origin.actor.project_id, for_update=True)
            now = await self._clock(session)
            # Due times are whole minutes. A time with microseconds differs from all of them, so that this run and one
            # that is due now can both exist (`scheduled_for` is unique per schedule).
            now = now.replace(microsecond=now.microsecond or 1)
            job = accepted.job = await self._start(session, schedule, now)
            job.created_by = origin.caller
        await self._queue.dispatch([job.message])
        return job

    async def start_due(self) -> int:
        """Start the due runs and record missed ones. Return the number of runs started."""
        async with self._database.transaction() as session:
            now = await self._clock(session)
            due = await ScheduleRepository(session).due(now, tuple(self._actions))
        started = 0
        for schedule in due:
            try:
                job = await self._start_if_unchanged(schedule, now)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("schedule.failed", schedule=schedule.name)
            else:
                started += job is not None
        return started

    async def _start_if_unchanged(self, due: Schedule, now: datetime) -> Job | None:
        # In a thread and outside of any transaction: after a long outage there may be a million times to count.
        window = timedelta(seconds=due.catch_up_seconds)
        plan = await asyncio.to_thread(plan_run, due.calendar, due.next_run_at or now, now=now, window=window)
        async with self._database.transaction() as session:
            room = await lock_room_if_free(session, due.project_id)
            if room is None:  # the next sweep starts it; other projects must not wait for this one
                return None
            schedule = await ScheduleRepository(session).lock_if_unchanged(due)
            if schedule is None:
                return None
            result = await self._carry_out(session, schedule, plan, room)
            schedule.next_run_at = plan.following
        _log_run(schedule, plan, result)
        if not isinstance(result, Job):
            return None
        metrics.current().jobs_accepted(result.kind)
        await self._queue.dispatch([result.message])
        return result

    async def _carry_out(
        self, session: AsyncSession, schedule: Schedule, plan: PlannedRun, room: Room
    ) -> Job | Refused | None:
        """Insert the runs of a plan. Return the started job, the error if it was refused, None if all were missed."""
        if plan.missed is not None:
            await _add_with_event(
                session, schedule, _run(schedule, plan.missed, RunOutcome.MISSED), EventType.RUN_MISSED
            )
        if plan.run_at is None:
            return None
        owner = Actor(schedule.owner, project_id=schedule.project_id)
        try:
            if owner.name is not None and not await self._may_own(session, schedule.project_id, owner.name):
                raise ScheduleOwnerGone(owner=owner.name)
            room.take(queued_jobs=1)
            attributes = {
                "cistern.schedule.id": str(schedule.id),
                "cistern.schedule.name": schedule.name,
                "cistern.schedule.scheduled_for": plan.run_at.isoformat(),
            }
            with tracing.cause("run schedule", attributes):
                job = await self._start(session, schedule, plan.run_at)
        except Refused as refused:
            skipped = _run(schedule, Span(plan.run_at, plan.run_at), RunOutcome.SKIPPED, detail=refused.message)
            await _add_with_event(session, schedule, skipped, EventType.RUN_FAILED)
            return refused
        await add_entries(session, [entry_of(job, owner)])
        return job

    async def _start(self, session: AsyncSession, schedule: Schedule, scheduled_for: datetime) -> Job:
        last = schedule.last_job_id
        if last is not None and not await JobRepository(session).ended_among([last]):
            raise ScheduleBusy(f"The job of the previous run is still active ({last}).", job_id=last)
        action = self._actions[schedule.action]
        job = await action.request(
            session,
            schedule.params,
            project_id=schedule.project_id,
            schedule_id=schedule.id,
            scheduled_for=scheduled_for,
        )
        session.add(_run(schedule, Span(scheduled_for, scheduled_for), RunOutcome.STARTED, job_id=job.id))
        schedule.last_job_id = job.id
        return job


async def _add_with_event(session: AsyncSession, schedule: Schedule, run: Run, event_type: EventType) -> None:
    """Insert a run that has no job, and record the deliveries of its event."""
    session.add(run)
    shown = {name: getattr(run, name) for name in ("scheduled_for", "last_scheduled_for", "count", "outcome", "detail")}
    data = {"schedule": {"id": schedule.id, "name": schedule.name}, "run": {"id": run.id, **shown}}
    await record_events(session, [Event(schedule.project_id, (event_type,), data, id=run.id)])


def _log_run(schedule: Schedule, plan: PlannedRun, result: Job | Refused | None) -> None:
    bound = log.bind(schedule=schedule.name)
    if (missed := plan.missed) is not None:
        bound.warning("schedule.missed", first=str(missed.first), last=str(missed.last), count=missed.count)
    match result:
        case Job():
            bound.info("schedule.run_started", scheduled_for=str(plan.run_at), job_id=str(result.id))
        case Refused():
            bound.warning("schedule.skipped", scheduled_for=str(plan.run_at), reason=result.message)


def _run(schedule: Schedule, span: Span, outcome: RunOutcome, **columns: Any) -> Run:
    return Run(
        id=uuid7(),
        schedule_id=schedule.id,
        scheduled_for=span.first,
        last_scheduled_for=span.last,
        count=span.count,
        outcome=outcome,
        **columns,
    )
