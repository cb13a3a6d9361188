"""The table of webhooks, and the types of the events that are sent to them."""

import enum
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, CheckConstraint, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Owned

#: Maximum length of a URL.
MAX_URL: Final = 2000
#: Maximum number of webhooks of a project: a failed job makes a delivery to each of them.
MAX_WEBHOOKS: Final = 20


class EventType(enum.StrEnum):
    """What a webhook can ask for."""

    JOB_FAILED = "job.failed"
    JOB_PARTIAL = "job.partial"
    #: A bulk job has succeeded because no volume matched its selection.
    JOB_SELECTED_NOTHING = "job.selected_nothing"
    #: The job of a run has failed, or the run was refused.
    RUN_FAILED = "schedule.run_failed"
    RUN_MISSED = "schedule.run_missed"
    LIMIT_REACHED = "limit.reached"


#: The type of the event that is sent on request.
TEST_EVENT: Final = "webhook.test"


class Webhook(Owned):
    """A URL to which the events of a project are sent."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint(f"length(url) BETWEEN 1 AND {MAX_URL}", name="url"),
        CheckConstraint("cardinality(events) > 0", name="events"),
        Index("webhooks_project_id_idx", "project_id"),
    )

    url: Mapped[str]
    #: The key of the signatures. Only workers may read it, so a query has to name it (`undefer`) to load it.
    secret: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)
    events: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    enabled: Mapped[bool]
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: When the last event of each limit was recorded, by the name of the limit, in seconds since 1970.
    limits_told: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


def wants(webhook_events: list[str], types: tuple[EventType, ...]) -> EventType | None:
    """Return the first of the types of an event that a webhook wants; None if it wants none of them."""
    return next((one for one in types if one in webhook_events), None)


def webhook_of(params: dict[str, Any]) -> UUID:
    """Return the id of the webhook in the parameters of a delivery."""
    return UUID(params["webhook_id"])
