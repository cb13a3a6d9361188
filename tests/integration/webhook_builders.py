"""Builders for tests of webhooks."""

from typing import Any
from uuid import UUID

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.attempt import ClaimedJob, Failed
from domain.jobs.engine import JobEngine
from domain.jobs.webhooks.model import EventType
from domain.jobs.webhooks.service import CreatedWebhook, NewWebhook
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, an_engine, sql

ERROR = {"code": "storage-full", "detail": "Full."}
#: A listed host that no test connects to.
URL = "http://127.0.0.1:9/hook"


async def a_webhook(
    services: Services, url: str = URL, *events: EventType, project_id: UUID = DEFAULT_PROJECT
) -> CreatedWebhook:
    """Create a webhook for these events, or all."""
    new = NewWebhook(url, events or tuple(EventType))
    return await services.webhooks.create(new, actor=Actor("tests", project_id=project_id))


async def a_claimed_job(services: Services) -> tuple[JobEngine, ClaimedJob]:
    """Request an expansion and claim it."""
    engine = an_engine(services)
    claim = await engine.claim((await a_queued_expand(services)).message)
    assert claim is not None
    return engine, claim.job


async def a_failed_job(services: Services) -> UUID:
    """Settle an expansion as failed."""
    engine, job = await a_claimed_job(services)
    assert await engine.settle(job, Failed(ERROR))
    return job.id


async def deliveries(services: Services) -> list[dict[str, Any]]:
    """Return all deliveries, oldest first."""
    rows = await sql(services, "SELECT * FROM jobs WHERE kind = 'webhook.deliver' ORDER BY id")
    return [dict(row._mapping) for row in rows]


async def event_types(services: Services) -> list[str]:
    """Return the types of the events of all deliveries, oldest first."""
    return [job["params"]["event"]["type"] for job in await deliveries(services)]
