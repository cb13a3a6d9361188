"""The table of the audit log, and who a change is recorded for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT, Entity


@dataclass(frozen=True)
class Actor:
    """Who sends a request: the key, the request, from where, and for which project. None if it is not known."""

    name: str | None = None
    key_id: UUID | None = None
    request_id: str | None = None
    #: Address of the client, or of the proxy in front of it.
    peer: str | None = None
    project_id: UUID = DEFAULT_PROJECT
    #: Whether the project has limits.
    is_limited: bool = False


NOBODY: Final = Actor()


class AuditEntry(Entity):
    """One accepted change. Entries are never changed."""

    __tablename__ = "audit_entries"

    #: A job kind, or ``job.cancel``, ``volume.update``, ``schedule.create``, ``key.revoke`` and the like.
    action: Mapped[str]
    #: Name of the key; None for what Cistern does by itself.
    name: Mapped[str | None]
    key_id: Mapped[UUID | None]
    request_id: Mapped[str | None]
    peer: Mapped[str | None]
    job_id: Mapped[UUID | None]
    #: The volume, snapshot, schedule or key that is changed.
    subject_id: Mapped[UUID | None]
    #: Its name; None where a job is requested for something that exists.
    subject_name: Mapped[str | None]
    #: The members that are changed, by an update.
    details: Mapped[dict[str, Any] | None]
    #: The project in which; None of entries from before there were projects.
    project_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


@dataclass(slots=True)
class NewEntry:
    """An entry to be inserted. A mapped object takes longer to make, and every request makes an entry."""

    id: UUID
    action: str
    name: str | None
    key_id: UUID | None
    request_id: str | None
    peer: str | None
    job_id: UUID | None
    subject_id: UUID | None
    subject_name: str | None
    details: Mapping[str, Any] | None
    project_id: UUID


def new_entry(
    actor: Actor,
    action: str,
    *,
    job_id: UUID | None = None,
    subject_id: UUID | None = None,
    subject_name: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> NewEntry:
    """Build an entry."""
    who = (actor.name, actor.key_id, actor.request_id, actor.peer)
    return NewEntry(uuid7(), action, *who, job_id, subject_id, subject_name, details, actor.project_id)
