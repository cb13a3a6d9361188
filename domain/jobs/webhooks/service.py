"""Webhooks: create, list, change, delete and test them, and record the limits that refuse requests."""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.audit.model import Actor, new_entry
from domain.audit.repository import add_entries
from domain.db.base import find_owned
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import DatabaseUnavailable, QuotaExceeded, TooManyWebhooks, WebhookNotFound
from domain.jobs.acceptance import RequestOrigin, accepting
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.webhooks.model import MAX_WEBHOOKS, TEST_EVENT, Webhook
from domain.jobs.webhooks.outbox import Event, delivery, record_reached_limit
from domain.jobs.webhooks.sender import new_secret
from domain.jobs.webhooks.target import Target
from domain.projects.model import Project

#: Minimum time between two tries of a process to record the same limit, in seconds: a client may send many requests.
_LIMIT_SECONDS: Final = 60.0
#: Maximum number of limits for which the time of the next try is kept.
_MAX_LIMITS: Final = 1000
#: Maximum number of attempts at a test.
_TEST_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class NewWebhook:
    """A request for a webhook."""

    url: str
    events: Collection[str]
    enabled: bool = True


class CreatedWebhook(NamedTuple):
    """A new webhook, and its secret, which is shown once."""

    webhook: Webhook
    secret: str


class WebhookService:
    """The webhooks, for the API."""

    def __init__(self, database: Database, queue: JobQueue, *, hosts: Collection[str]) -> None:
        """Create the service; webhooks may only go to ``hosts``."""
        self._database = database
        self._queue = queue
        self._hosts = hosts
        #: By project and limit: the time of the monotonic clock before which it is not recorded again.
        self._next_tries: dict[tuple[UUID, str], float] = {}

    async def create(self, new: NewWebhook, *, actor: Actor) -> CreatedWebhook:
        """Create a webhook with a new secret.

        Raises:
            Invalid: the URL is not usable.
            WebhookHostRefused: its host is not listed.
            TooManyWebhooks: the project has as many as it may have.
        """
        host, secret = Target.of(new.url, self._hosts).host, new_secret()
        async with self._database.transaction() as session:
            # Only a count that begins when the lock is granted sees what the request before has committed.
            project = select(Project.id).where(Project.id == actor.project_id)
            await session.execute(project.with_for_update(key_share=True))
            count = select(func.count()).select_from(Webhook).where(Webhook.project_id == actor.project_id)
            if (await session.scalar(count) or 0) >= MAX_WEBHOOKS:
                raise TooManyWebhooks
            webhook = Webhook(
                id=uuid7(),
                project_id=actor.project_id,
                url=new.url,
                secret=secret,
                events=sorted(new.events),
                enabled=new.enabled,
                created_by=actor.name,
            )
            session.add(webhook)
            await session.flush()
            # The rest of the URL may be a secret.
            await _record(session, "webhook.create", webhook.id, actor, host=host, events=webhook.events)
        return CreatedWebhook(webhook, secret)

    async def list_webhooks(self, request: PageRequest, *, project_id: UUID) -> Page[Webhook]:
        """List the webhooks of a project, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        query = select(Webhook).where(Webhook.project_id == project_id).order_by(Webhook.id.desc())
        if (before := request.before) is not None:
            query = query.where(Webhook.id < before)
        async with self._database.transaction() as session:
            return request.page((await session.scalars(query.limit(request.limit + 1))).all())

    async def change(self, webhook_id: UUID, changes: Mapping[str, Any], *, actor: Actor) -> Webhook:
        """Change the events of a webhook, or whether it is enabled.

        Raises:
            WebhookNotFound: no such webhook.
        """
        async with self._database.transaction() as session:
            webhook = await _get(session, webhook_id, actor.project_id, for_update=True)
            for name, value in changes.items():
                setattr(webhook, name, value)
            await session.flush()
            await _record(session, "webhook.update", webhook_id, actor, **changes)
        return webhook

    async def delete(self, webhook_id: UUID, *, actor: Actor) -> None:
        """Delete a webhook. Its deliveries that are not made yet fail.

        Raises:
            WebhookNotFound: no such webhook.
        """
        async with self._database.transaction() as session:
            await session.delete(await _get(session, webhook_id, actor.project_id, for_update=True))
            await _record(session, "webhook.delete", webhook_id, actor)

    async def request_test(self, webhook_id: UUID, *, origin: RequestOrigin) -> Job:
        """Accept the delivery of an event of the type `TEST_EVENT`.

        Raises:
            WebhookNotFound: no such webhook.
        """
        async with accepting(self._database, origin) as accepted:
            project_id = origin.actor.project_id
            webhook = await _get(accepted.session, webhook_id, project_id)
            event = Event(project_id, (), {"webhook": {"id": str(webhook_id)}})
            columns = {"created_by": origin.caller, "max_attempts": _TEST_ATTEMPTS}
            job = delivery(webhook.id, event, TEST_EVENT, **columns)
            accepted.job = await JobRepository(accepted.session).add(job)
        await self._queue.dispatch([job.message])
        return job

    async def record_reached_limit(self, project_id: UUID, refused: QuotaExceeded) -> None:
        """Record the deliveries for a limit that has refused a request; at most once an hour for each limit."""
        limit = str(refused.details["quota"])
        now = time.monotonic()
        if now < self._next_tries.get((project_id, limit), 0.0):
            return
        self._next_tries[project_id, limit] = now + _LIMIT_SECONDS
        while len(self._next_tries) > _MAX_LIMITS:
            del self._next_tries[next(iter(self._next_tries))]
        data = {"project_id": str(project_id), "limit": limit, **_numbers(refused)}
        with suppress(DatabaseUnavailable):  # the request is refused either way
            async with self._database.transaction() as session:
                await record_reached_limit(session, project_id, limit, data)


def _numbers(refused: QuotaExceeded) -> dict[str, Any]:
    return {name: refused.details[name] for name in ("left", "requested")}


async def _get(session: AsyncSession, webhook_id: UUID, project_id: UUID, *, for_update: bool = False) -> Webhook:
    webhook = await find_owned(session, Webhook, webhook_id, project_id, for_update=for_update)
    if webhook is None:
        raise WebhookNotFound(webhook_id)
    return webhook


async def _record(session: AsyncSession, action: str, webhook_id: UUID, actor: Actor, **details: Any) -> None:
    """Add an entry to the audit log."""
    await add_entries(session, [new_entry(actor, action, subject_id=webhook_id, details=details or None)])
