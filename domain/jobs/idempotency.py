"""Accepting a request, once: who asks, and the promise that the same Idempotency-Key is the same request.

The key's row is written first in the transaction that accepts, and completed last. A duplicate in flight waits for it
on the primary key; if the first is refused, its row is gone and the duplicate takes its turn.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base, Entity
from domain.db.database import Database
from domain.errors import CisternError, IdempotencyKeyReused
from domain.jobs.model import Job
from domain.jobs.outcomes import Payload
from domain.logs import about

KEY_LIFETIME: Final = timedelta(hours=24)

log = structlog.get_logger(__name__)


class IdempotencyKey(Base):
    """A request that was accepted under a key, and its first answer."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    #: Hash of what was asked: another body under the same key is a mistake of the client's.
    fingerprint: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None]
    expires_at: Mapped[datetime] = mapped_column(index=True)


@dataclass(frozen=True)
class IdempotentRequest:
    """An Idempotency-Key as it came, and how the answer is put that is kept with it."""

    key: str
    route: str
    fingerprint: str
    #: The status and the body that tell of what was made.
    render: Callable[[Entity], tuple[int, Payload]]


@dataclass(frozen=True)
class RequestOrigin:
    """Where a request comes from. ``caller`` as the client names itself, None if it does not."""

    caller: str | None = None
    key: IdempotentRequest | None = None


ANONYMOUS: Final = RequestOrigin()
_ACCEPTED: Final = 202


class IdempotentReplay(CisternError):
    """This request was accepted before; the first answer is given again."""

    code = "idempotent-replay"

    def __init__(self, status: int, body: Payload) -> None:
        super().__init__()
        self.status = status
        self.body = body


class AcceptedRequest:
    """A request on its way into the job book."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.job: Job | None = None
        #: What was made at once, where that needs no job.
        self.made: Entity | None = None


@asynccontextmanager
async def idempotent_transaction(database: Database, origin: RequestOrigin) -> AsyncIterator[AcceptedRequest]:
    """Open the transaction that accepts a request; whoever uses it sets ``job`` or ``made`` before it ends.

    Raises:
        AcceptedBefore: it was, under this key.
        IdempotencyKeyReused: something else was, under this key.
    """
    async with database.transaction() as session:
        if origin.key is not None:
            await _reserve(session, origin.caller or "", origin.key)
        acceptance = AcceptedRequest(session)
        yield acceptance
        made = acceptance.job or acceptance.made
        if origin.key is not None and made is not None:
            await _store_response(session, origin.caller or "", origin.key, made)
    if acceptance.job is not None:
        log_accepted(acceptance.job)


def log_accepted(job: Job) -> None:
    """Leave in the logs under which request a job, or its end, was asked for."""
    names = about(job_id=job.id, volume_id=job.volume_id, snapshot_id=job.snapshot_id, retry_of=job.retry_of)
    log.info("job.accepted" if job.cancel_requested_at is None else "job.cancel_accepted", kind=job.kind, **names)


async def _reserve(session: AsyncSession, caller: str, key: IdempotentRequest) -> None:
    row = {
        "route": key.route,
        "fingerprint": key.fingerprint,
        "status": None,
        "body": None,
        "expires_at": func.now() + literal(KEY_LIFETIME),
    }
    reserve = (
        insert(IdempotencyKey)
        .values(caller=caller, key=key.key, **row)
        .on_conflict_do_update(index_elements=["caller", "key"], set_=row, where=IdempotencyKey.expires_at < func.now())
        .returning(IdempotencyKey.key)
    )
    if await session.scalar(reserve) is None:
        await _replay(session, caller, key)


async def _replay(session: AsyncSession, caller: str, key: IdempotentRequest) -> None:
    query = select(IdempotencyKey).where(IdempotencyKey.caller == caller, IdempotencyKey.key == key.key)
    first = (await session.scalars(query)).one()
    if (first.route, first.fingerprint) != (key.route, key.fingerprint):
        raise IdempotencyKeyReused
    raise IdempotentReplay(first.status or _ACCEPTED, first.body or {})


async def _store_response(session: AsyncSession, caller: str, key: IdempotentRequest, made: Entity) -> None:
    status, body = key.render(made)
    keep = update(IdempotencyKey).where(IdempotencyKey.caller == caller, IdempotencyKey.key == key.key)
    await session.execute(keep.values(status=status, body=body))
