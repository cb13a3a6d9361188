"""Bodies of webhooks."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas.base import Omittable, RequestBody
from domain.jobs.webhooks.model import MAX_URL, EventType, Webhook
from domain.jobs.webhooks.service import CreatedWebhook, NewWebhook

_EXAMPLE: Final[JsonDict] = {
    "id": "01a0b1c2-0000-7000-8000-000000000007",
    "project_id": "00000000-0000-7000-8000-000000000001",
    "url": "https://hooks.example.org/cistern",
    "events": ["job.failed", "schedule.run_failed"],
    "enabled": True,
    "created_by": "admin",
    "created_at": "2026-01-31T23:59:59.123456Z",
}

Events = Annotated[
    list[EventType],
    Field(
        min_length=1,
        max_length=len(EventType),
        description="The types of events that are sent to it.",
        examples=[["job.failed"]],
    ),
]


class WebhookIn(RequestBody):
    """A new webhook."""

    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_URL,
            description="Of a host in `CISTERN_WEBHOOK_HOSTS`.",
            examples=["https://hooks.example.org/cistern"],
        ),
    ]
    events: Annotated[Omittable[Events], Field(description="All, if it is left out.")] = None
    enabled: Annotated[bool, Field(strict=True)] = True

    def new_webhook(self) -> NewWebhook:
        """Convert to the domain request."""
        return NewWebhook(self.url, {str(one) for one in self.events or EventType}, self.enabled)


class WebhookPatch(RequestBody):
    """Changes of a webhook; members that are left out stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}]})

    events: Omittable[Events] = None
    enabled: Omittable[Annotated[bool, Field(strict=True)]] = None

    def changes(self) -> dict[str, Any]:
        """Return the changed columns."""
        changes = self.model_dump(mode="json", exclude_unset=True)
        if self.events is not None:
            changes["events"] = sorted({str(one) for one in self.events})
        return changes


class WebhookOut(BaseModel):
    """A webhook, without its secret."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID
    project_id: UUID
    url: str
    events: list[str]
    enabled: bool
    created_by: str | None
    created_at: datetime

    @classmethod
    def from_row(cls, webhook: Webhook) -> "WebhookOut":
        """Render a webhook."""
        return cls.model_validate(webhook)


class CreatedWebhookOut(WebhookOut):
    """A new webhook with its secret, which is never shown again."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE | {"secret": "whsec_EXAMPLE"}]})

    secret: str = Field(description="What its deliveries are signed with. It is shown only here.")

    @classmethod
    def from_created(cls, created: CreatedWebhook) -> "CreatedWebhookOut":
        """Render a new webhook."""
        return cls(**WebhookOut.from_row(created.webhook).model_dump(), secret=created.secret)
