"""Handles the jobs that deliver events."""

import asyncio
import random
import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from domain.db.database import Database
from domain.jobs.attempt import ClaimedJob, Failed, Outcome, Payload, RetryIn, Succeeded
from domain.jobs.kinds import JobHandler
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.webhooks.model import TEST_EVENT, Webhook, webhook_of
from domain.jobs.webhooks.outbox import MAX_ATTEMPTS
from domain.jobs.webhooks.sender import NoAnswer, Sender
from domain.jobs.webhooks.target import DeliveryFailed
from domain.projects.quota import Room
from domain.storage.context import Grant
from domain.tasks import cancel_and_wait

#: Maximum number of deliveries that a worker makes at once, so that slow receivers leave slots to other jobs.
_MAX_RUNNING: Final = 2
#: How long a receiver that did not answer gets no other delivery from this worker, in seconds: it would hold the places
#: of those for receivers that do answer.
_PAUSE_SECONDS: Final = 30.0
#: How often a delivery checks whether it has to stop, in seconds.
_POLL_SECONDS: Final = 0.5
_WEBHOOK_GONE: Final[Payload] = {"code": "webhook-gone", "detail": "The webhook is deleted or disabled."}
_RECEIVER_GONE: Final[Payload] = {"code": "webhook-gone", "detail": "The receiver answered 410: it is gone."}
_BUSY: Final[Payload] = {"code": "deliveries-busy", "detail": "The worker makes as many deliveries as it may."}

T = TypeVar("T")


class DeliveryHandler(JobHandler):
    """Delivers events. Each attempt has the same id and body, and a signature and a time of its own."""

    def __init__(self, database: Database, sender: Sender) -> None:
        self._database = database
        self._sender = sender
        self._running = 0
        #: Until when the webhooks whose receivers did not answer have to wait, in seconds of the monotonic clock.
        self._silent: dict[UUID, float] = {}

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Send the event to the webhook; retry without spending an attempt while the worker makes as many as it may.

        Raises:
            DeliveryFailed: the receiver did not accept the event.
            WebhookHostRefused: its host is not listed any more.
        """
        webhook_id = webhook_of(job.params)
        if time.monotonic() < self._silent.get(webhook_id, 0.0) and job.params["event"]["type"] != TEST_EVENT:
            raise DeliveryFailed("The receiver did not answer another delivery just before.")
        if self._running >= _MAX_RUNNING:
            return RetryIn(random.uniform(1.0, 3.0), _BUSY, free=True)  # noqa: S311
        self._running += 1
        if webhook_id in self._silent:
            self._silent[webhook_id] = time.monotonic() + _PAUSE_SECONDS  # only this delivery tries whether it answers
        try:
            return await self._deliver(job, grant)
        except NoAnswer:
            self._silent[webhook_id] = time.monotonic() + _PAUSE_SECONDS
            raise
        finally:
            self._running -= 1

    async def _deliver(self, job: ClaimedJob, grant: Grant) -> Outcome:
        grant.check()
        query = select(Webhook).options(undefer(Webhook.secret))
        async with self._database.transaction() as session:
            webhook = await session.scalar(
                query.where(Webhook.id == webhook_of(job.params), Webhook.project_id == job.project_id)
            )
        if webhook is None or not webhook.enabled:
            return Failed(_WEBHOOK_GONE)
        event_id, event = job.params["event_id"], job.params["event"]
        status = await _while_granted(self._sender.send(webhook.url, webhook.secret, event_id, event), grant)
        self._silent.pop(webhook.id, None)
        if status == HTTPStatus.GONE:
            return Failed(_RECEIVER_GONE)
        if not HTTPStatus(200) <= status < HTTPStatus(300):
            raise DeliveryFailed(f"The receiver answered {status}.")
        return Succeeded({"webhook_id": str(webhook.id), "status": status})

    async def retry(self, session: AsyncSession, ended: Job, _: Room) -> Job:
        """Add a job that sends the same event once more, under its first id."""
        job = new_job(
            ended.kind,
            ended.params,
            project_id=ended.project_id,
            max_attempts=MAX_ATTEMPTS,
            **retry_columns(ended),
        )
        return await JobRepository(session).add(job)


async def _while_granted(work: Coroutine[Any, Any, T], grant: Grant) -> T:
    """Wait for the work, and end it when the attempt has to stop."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            grant.check()
            await asyncio.wait((task,), timeout=_POLL_SECONDS)
        return task.result()
    finally:
        await cancel_and_wait((task,))
