"""Records deliveries in the transaction in which something happens, so that both are committed or neither.

Each delivery is a queued job; maintenance sends its message after the commit. An event has one id for all webhooks and
all attempts, by which a receiver recognises a repetition.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Row, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Float, Text
from uuid_utils.compat import uuid7

from domain.jobs.attempt import Payload
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job, new_job
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.webhooks.model import EventType, Webhook, wants

#: Maximum number of attempts at a delivery; with the delays between them they take about three hours.
MAX_ATTEMPTS: Final = 40
#: Minimum time between two events of the same limit, in seconds.
_LIMIT_SECONDS: Final = 3600.0
#: The columns of a job that an event has.
_JOB_COLUMNS: Final = (
    *(Job.id, Job.kind, Job.status, Job.volume_id, Job.volume_name, Job.snapshot_id, Job.backend),
    *(Job.created_by, Job.retry_of),
    *(Job.schedule_id, Job.scheduled_for, Job.total, Job.succeeded, Job.failed, Job.skipped, Job.error),
    *(Job.created_at, Job.started_at, Job.finished_at),
)


@dataclass(frozen=True)
class Event:
    """Something that has happened in a project. A webhook gets it once, as the first of the ``types`` that it wants."""

    project_id: UUID
    types: tuple[EventType, ...]
    data: Payload
    id: UUID = field(default_factory=uuid7)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


async def record_events(session: AsyncSession, events: Iterable[Event]) -> None:
    """Record the deliveries of events to the webhooks of their projects."""
    for event in events:
        query = select(Webhook.id, Webhook.events).where(Webhook.project_id == event.project_id, *_wanting(event.types))
        await _add(session, [(row.id, row.events, event) for row in await session.execute(query)])


async def record_ended_jobs(session: AsyncSession, job_ids: Collection[UUID]) -> None:
    """Record the deliveries for jobs that this transaction has ended, other than as they should.

    It is one query if the project has no webhook: jobs that succeed must not come here, so that they cost nothing.
    """
    columns = (*_JOB_COLUMNS, Job.project_id, Webhook.id.label("webhook_id"), Webhook.events)
    query = (
        select(*columns)
        .join(Webhook, Webhook.project_id == Job.project_id)
        .where(Job.id.in_(job_ids), Job.parent_id.is_(None), Job.kind != JobKind.WEBHOOK_DELIVER, Webhook.enabled)
        .order_by(Job.id)
    )
    await _add(session, [(row.webhook_id, row.events, _event_of(row)) for row in await session.execute(query)])


async def record_reached_limit(session: AsyncSession, project_id: UUID, limit: str, data: Payload) -> None:
    """Record the deliveries for a limit that refused a request; at most once an hour for each limit of a project."""
    event = Event(project_id, (EventType.LIMIT_REACHED,), data)
    now = func.date_part("epoch", func.now())
    last_at = func.coalesce(Webhook.limits_told[limit].astext.cast(Float), 0)
    query = (
        update(Webhook)
        .where(Webhook.project_id == project_id, *_wanting(event.types), last_at < now - _LIMIT_SECONDS)
        .values(limits_told=Webhook.limits_told.op("||")(func.jsonb_build_object(limit, now)))
        .returning(Webhook.id, Webhook.events)
        .execution_options(synchronize_session=False)
    )
    await _add(session, [(row.id, row.events, event) for row in await session.execute(query)])


def delivery(webhook_id: UUID, event: Event, event_type: str, **columns: Any) -> Job:
    """Build the job that sends an event to a webhook."""
    body = {"type": event_type, "timestamp": event.at.isoformat().replace("+00:00", "Z"), "data": event.data}
    params = {"webhook_id": str(webhook_id), "event_id": str(event.id), "event": body, "fence_version": 0}
    columns = {"max_attempts": MAX_ATTEMPTS} | columns
    return new_job(JobKind.WEBHOOK_DELIVER, params, project_id=event.project_id, **columns)


async def _add(session: AsyncSession, wanted: Sequence[tuple[UUID, list[str], Event]]) -> None:
    jobs = [
        delivery(webhook_id, event, event_type)
        for webhook_id, events, event in wanted
        if (event_type := wants(events, event.types)) is not None
    ]
    if jobs:
        await JobRepository(session).add_undispatched(jobs)


def _wanting(types: tuple[EventType, ...]) -> tuple[ColumnElement[bool], ...]:
    return Webhook.enabled.is_(True), Webhook.events.op("&&")(literal([*types], ARRAY(Text())))


def _event_of(row: Row[Any]) -> Event:
    job = {column.key: getattr(row, column.key) for column in _JOB_COLUMNS}
    types: tuple[EventType, ...] = (EventType.JOB_FAILED,)
    if row.status is JobStatus.PARTIAL:
        types = (EventType.JOB_PARTIAL,)
    elif row.status is JobStatus.SUCCEEDED:
        types = (EventType.JOB_SELECTED_NOTHING,)
    elif row.schedule_id is not None:
        types = (EventType.RUN_FAILED, EventType.JOB_FAILED)
    return Event(row.project_id, types, {"job": job}, id=row.id, at=row.finished_at)
