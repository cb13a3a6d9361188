"""The handler of deliveries."""

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
from domain.jobs.webhooks.model import TEST, Webhook, webhook_of
from domain.jobs.webhooks.outbox import MAX_ATTEMPTS
from domain.jobs.webhooks.sender import NoAnswer, Sender
from domain.jobs.webhooks.target import DeliveryFailed
from domain.projects.quota import Room
from domain.storage.context import Grant
from domain.tasks import cancel_and_wait

#: How many deliveries a worker does at once: receivers that do not answer must not hold the slots of other jobs.
_AT_ONCE: Final = 2
#: How long a receiver that did not answer gets no other delivery from this worker, in seconds: it would hold the places
#: of those for receivers that do answer.
_PAUSE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.5
_GONE: Final[Payload] = {"code": "webhook-gone", "detail": "The webhook is deleted or disabled."}
_REFUSED_FOR_GOOD: Final[Payload] = {"code": "webhook-gone", "detail": "The receiver answered 410: it is gone."}
_WAITING: Final[Payload] = {"code": "deliveries-busy", "detail": "The worker makes as many deliveries as it may."}

T = TypeVar("T")


class DeliveryHandler(JobHandler):
    """Delivers events; each attempt signs anew, with the same id and body."""

    def __init__(self, database: Database, sender: Sender) -> None:
        self._database = database
        self._sender = sender
        self._running = 0
        #: Until when the webhooks whose receivers did not answer have to wait, in seconds of the monotonic clock.
        self._silent: dict[UUID, float] = {}

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Send the event to the webhook.

        Raises:
            DeliveryFailed, Invalid: the receiver did not accept it, or its host is not allowed any more.
        """
        webhook_id = webhook_of(job.params)
        if time.monotonic() < self._silent.get(webhook_id, 0.0) and job.params["event"]["type"] != TEST:
            raise DeliveryFailed("The receiver did not answer another delivery just before.")
        if self._running >= _AT_ONCE:
            return RetryIn(random.uniform(1.0, 3.0), _WAITING, free=True)  # noqa: S311
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
            return Failed(_GONE)
        event_id, event = job.params["event_id"], job.params["event"]
        status = await _while_granted(self._sender.send(webhook.url, webhook.secret, event_id, event), grant)
        self._silent.pop(webhook.id, None)
        if status == HTTPStatus.GONE:
            return Failed(_REFUSED_FOR_GOOD)
        if not HTTPStatus(200) <= status < HTTPStatus(300):
            raise DeliveryFailed(f"The receiver answered {status}.")
        return Succeeded({"webhook_id": str(webhook.id), "status": status})

    async def retry(self, session: AsyncSession, ended: Job, _: Room) -> Job:
        """Deliver the same event once more, under its first id."""
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
