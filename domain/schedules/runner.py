"""Starts runs: those that are due, exactly once over any number of workers, and those that somebody asks for now.

A run and its job are written in the transaction that locks the schedule and moves it on; whoever finds it locked, or
moved on, leaves it alone. A process that dies before that has done nothing; one that dies after it, before it has
rung, leaves a queued job without a message, which housekeeping finds.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.errors import DatabaseUnavailable, Refused, ScheduleBusy
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.schedules.actions import Actions
from domain.schedules.clock import Clock, postgresql_clock
from domain.schedules.cron import CronSchedule
from domain.schedules.model import Run, Schedule
from domain.schedules.occurrences import PlannedRun, Span, plan_run
from domain.schedules.repository import ScheduleRepository
from domain.schedules.states import RunOutcome

log = structlog.get_logger(__name__)


class ScheduleRunner:
    """Starts what schedules ask for."""

    def __init__(
        self, database: Database, queue: JobQueue, actions: Actions, *, clock: Clock = postgresql_clock
    ) -> None:
        self._database = database
        self._queue = queue
        self._actions = actions
        self._clock = clock

    async def run_now(self, schedule_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a run beside those of the calendar, also of a schedule that is paused.

        Raises:
            ScheduleNotFound: there is none.
            ScheduleBusy: the job of the run before is still going.
            Refused: what it asks for cannot be asked for any more.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            session = acceptance.session
            schedule = await ScheduleRepository(session).lock(schedule_id)
            now = await self._clock(session)
            # Times of the calendar are whole minutes: this is none of them, so there can be one for each of both.
            now = now.replace(microsecond=now.microsecond or 1)
            job = acceptance.job = await self._start(session, schedule, now)
            job.created_by = origin.caller
        await self._queue.dispatch([job.dispatch])
        return job

    async def start_due(self) -> int:
        """Start what is due, and account for what was missed. Returns how many runs were started."""
        async with self._database.transaction() as session:
            now = await self._clock(session)
            due = await ScheduleRepository(session).due(now, tuple(self._actions))
        started = 0
        for schedule in due:
            try:
                job = await self._run_if_due(schedule, now)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("schedule.failed", schedule=schedule.name)
            else:
                started += job is not None
        return started

    async def _run_if_due(self, seen: Schedule, now: datetime) -> Job | None:
        # In a thread and in no transaction, for after a long outage there may be a million times to count.
        turn = await asyncio.to_thread(_plan, seen, now)
        async with self._database.transaction() as session:
            schedule = await ScheduleRepository(session).lock_if_unchanged(seen)
            if schedule is None:
                return None
            outcome = await self._record_run(session, schedule, turn)
            schedule.next_run_at = turn.following
        _log_run(schedule, turn, outcome)
        if not isinstance(outcome, Job):
            return None
        await self._queue.dispatch([outcome.dispatch])
        return outcome

    async def _record_run(self, session: AsyncSession, schedule: Schedule, turn: PlannedRun) -> Job | Refused | None:
        """Write down what becomes of all that is due. Returns the job that was started, or why none was."""
        if turn.missed is not None:
            session.add(_run(schedule, turn.missed, RunOutcome.MISSED))
        if turn.start is None:
            return None
        try:
            return await self._start(session, schedule, turn.start)
        except Refused as refused:
            session.add(_run(schedule, _once(turn.start), RunOutcome.SKIPPED, detail=refused.message))
            return refused

    async def _start(self, session: AsyncSession, schedule: Schedule, moment: datetime) -> Job:
        last = schedule.last_job_id
        if last is not None and not await JobRepository(session).ended_among([last]):
            raise ScheduleBusy(f"The job of the run before is still going ({last}).", job_id=last)
        action = self._actions[schedule.action]
        job = await action.request(session, schedule.params, schedule_id=schedule.id, scheduled_for=moment)
        session.add(_run(schedule, _once(moment), RunOutcome.STARTED, job_id=job.id))
        schedule.last_job_id = job.id
        return job


def _plan(schedule: Schedule, now: datetime) -> PlannedRun:
    calendar = CronSchedule(schedule.cron, schedule.time_zone)
    first = schedule.next_run_at or now
    return plan_run(calendar, first, now=now, window=timedelta(seconds=schedule.catch_up_seconds))


def _log_run(schedule: Schedule, turn: PlannedRun, outcome: Job | Refused | None) -> None:
    told = log.bind(schedule=schedule.name)
    if (missed := turn.missed) is not None:
        told.warning("schedule.missed", first=str(missed.first), last=str(missed.last), count=missed.count)
    match outcome:
        case Job():
            told.info("schedule.started", scheduled_for=str(turn.start), job_id=str(outcome.id))
        case Refused():
            told.warning("schedule.skipped", scheduled_for=str(turn.start), reason=outcome.message)


def _once(moment: datetime) -> Span:
    return Span(moment, moment, 1)


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
