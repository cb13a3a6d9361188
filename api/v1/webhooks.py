"""Routes of webhooks."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.acceptance import AcceptedDep, OriginDep
from api.dependencies import ActorDep, ProjectDep, ServicesDep
from api.openapi import BODY, accepts, errors
from api.schemas.jobs import JobOut
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from api.schemas.webhooks import CreatedWebhookOut, WebhookIn, WebhookOut, WebhookPatch
from domain.errors import BadCursor, QuotaExceeded, TooManyWebhooks, WebhookHostRefused, WebhookNotFound

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post(
    "",
    status_code=201,
    summary="Create a webhook",
    responses=errors(*BODY, WebhookHostRefused, TooManyWebhooks),
)
async def create_webhook(body: WebhookIn, services: ServicesDep, actor: ActorDep) -> CreatedWebhookOut:
    """Create a webhook for the project. The response has its secret, which cannot be read again."""
    return CreatedWebhookOut.from_created(await services.webhooks.create(body.new_webhook(), actor=actor))


@router.get("", summary="List webhooks", responses=errors(BadCursor))
async def list_webhooks(
    query: Annotated[PageQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[WebhookOut]:
    """List the webhooks of the project, newest first, without their secrets."""
    page = await services.webhooks.list_webhooks(query.page_of("webhooks", project_id), project_id=project_id)
    return paginated_response(page, WebhookOut.from_row)


@router.patch("/{webhook_id}", summary="Change a webhook", responses=errors(*BODY, WebhookNotFound))
async def update_webhook(webhook_id: UUID, body: WebhookPatch, services: ServicesDep, actor: ActorDep) -> WebhookOut:
    """Change which events a webhook gets, or disable it. Deliveries to a disabled one fail, and can be retried."""
    return WebhookOut.from_row(await services.webhooks.change(webhook_id, body.changes(), actor=actor))


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook", responses=errors(WebhookNotFound))
async def delete_webhook(webhook_id: UUID, services: ServicesDep, actor: ActorDep) -> None:
    """Delete a webhook. Its deliveries that are not made yet fail."""
    await services.webhooks.delete(webhook_id, actor=actor)


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    summary="Test a webhook",
    responses=accepts(WebhookNotFound, QuotaExceeded),
)
async def test_webhook(webhook_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Send an event of the type `webhook.test`; the job says whether the receiver has accepted it."""
    return await accepted(await services.webhooks.request_test(webhook_id, origin=origin))
