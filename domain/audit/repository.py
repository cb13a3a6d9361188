"""Queries on the audit log. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.audit.model import AuditEntry, NewEntry
from domain.db.sql import as_json, first_id_of, insertion

#: Insert entries: one for every request, so it is text, as the frequent statements on jobs.
ADD: Final = text(insertion(AuditEntry))

PRUNE_BATCH: Final = 1000
#: Maximum time in milliseconds from the first step of a request to its entry.
_CREATION_MS: Final = 3600 * 1000


@dataclass(frozen=True)
class AuditFilter:
    """Filters of the audit log; None matches any."""

    name: str | None = None
    action: str | None = None
    subject_id: UUID | None = None
    job_id: UUID | None = None


async def add_entries(session: AsyncSession, entries: Sequence[NewEntry]) -> None:
    """Insert entries in the transaction that accepts what they are about."""
    if entries:
        await session.execute(ADD, {"rows": as_json(entries)})


async def page_of_entries(
    session: AsyncSession, filters: AuditFilter, *, before: UUID | None, limit: int
) -> Sequence[AuditEntry]:
    """Read up to ``limit`` + 1 entries, newest first; the extra one shows that there is a next page."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    for column, value in vars(filters).items():
        if value is not None:
            query = query.where(getattr(AuditEntry, column) == value)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return (await session.scalars(query)).all()


async def project_of_created(session: AsyncSession, subject_id: UUID) -> UUID | None:
    """Return the project of something by the entry of its creation; None if there is none.

    The subject has an id of the time of the request, as has the entry: only entries of one hour are read.
    """
    last = UUID(int=min(subject_id.int + (_CREATION_MS << 80), 2**128 - 1))
    query = select(AuditEntry.project_id).where(AuditEntry.id.between(subject_id, last))
    return await session.scalar(query.where(AuditEntry.subject_id == subject_id).limit(1))


async def prune_entries(session: AsyncSession, *, age: timedelta) -> int:
    """Delete a batch of the oldest entries that are older than ``age``, and return their number."""
    oldest = select(AuditEntry.id).where(AuditEntry.id < first_id_of(datetime.now(UTC) - age))
    batch = oldest.order_by(AuditEntry.id).limit(PRUNE_BATCH)  # not locked: that would need the right to change them
    query = delete(AuditEntry).where(AuditEntry.id.in_(batch)).returning(AuditEntry.id)
    return len((await session.scalars(query.execution_options(synchronize_session=False))).all())
