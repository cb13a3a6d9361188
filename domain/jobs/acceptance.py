"""The transaction in which a request is accepted, once per Idempotency-Key.

If the request has a key, the transaction inserts the key's row first and stores the response in it last. A concurrent
duplicate waits on the primary key; if the first request is refused, its row is rolled back and the duplicate proceeds.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from domain import metrics, tracing
from domain.audit.model import NOBODY, Actor, NewEntry, new_entry
from domain.audit.repository import add_entries
from domain.db.base import Base, Entity
from domain.db.database import Database
from domain.errors import CisternError, IdempotencyKeyReused
from domain.jobs.attempt import Payload, subject_fields
from domain.jobs.model import Job
from domain.logs import log_fields
from domain.projects.quota import UNLIMITED, Room, lock_rooms

KEY_LIFETIME: Final = timedelta(hours=24)

log = structlog.get_logger(__name__)


class IdempotencyKey(Base):
    """A request accepted under a key, and the response to it."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    #: Hash of the request: a different request under the same key is a client error.
    fingerprint: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None]
    expires_at: Mapped[datetime] = mapped_column(index=True)


@dataclass(frozen=True)
class IdempotentRequest:
    """The Idempotency-Key of a request, and how to render the response to store with it."""

    key: str
    route: str
    fingerprint: str
    #: Returns the status and the body of the response for the job or entity created.
    render: Callable[[Entity], tuple[int, Payload]]


@dataclass(frozen=True)
class RequestOrigin:
    """Who sends a request, and its Idempotency-Key; None if it has none."""

    actor: Actor = NOBODY
    idempotency: IdempotentRequest | None = None

    @property
    def caller(self) -> str | None:
        """The name of who sends it."""
        return self.actor.name

    @property
    def key_space(self) -> str:
        """Whose idempotency keys count: those of one name in one project."""
        return f"{self.actor.project_id}:{self.actor.name or ''}"


ANONYMOUS: Final = RequestOrigin()
_ACCEPTED: Final = 202


class IdempotentReplay(CisternError):
    """This request was already accepted; the first response is returned again."""

    code = "idempotent-replay"

    def __init__(self, status: int, body: Payload) -> None:
        super().__init__()
        self.status = status
        self.body = body


class AcceptedRequest:
    """A request that is being accepted, the room in its project, and the job or entity created for it."""

    def __init__(self, session: AsyncSession, room: Room) -> None:
        self.session = session
        self.room = room
        self.job: Job | None = None
        #: An entity created at once, by a request that needs no job.
        self.entity: Entity | None = None
        #: Called after all other checks; may refuse the request for a reason that only an acceptable one may reveal.
        self.last_check: Callable[[], None] = lambda: None


@asynccontextmanager
async def accepting(database: Database, origin: RequestOrigin) -> AsyncIterator[AcceptedRequest]:
    """Open the transaction that accepts a request. The block must set ``job`` or ``entity``.

    Raises:
        IdempotentReplay: the same request was already accepted under this key.
        IdempotencyKeyReused: a different request was accepted under this key.
        QuotaExceeded: the project may not have another queued job.
    """
    with tracing.sending():
        async with database.transaction() as session:
            if origin.idempotency is not None:
                await _reserve(session, origin.key_space, origin.idempotency)
            rooms = await rooms_of(session, [origin.actor])
            request = AcceptedRequest(session, rooms.get(origin.actor.project_id, UNLIMITED))
            yield request
            created = request.job or request.entity
            if request.job is not None:
                if request.job.cancel_requested_at is None:  # a cancellation adds no job
                    request.room.take(queued_jobs=1)
                request.last_check()
                await add_entries(session, [entry_of(request.job, origin.actor)])
            if origin.idempotency is not None and created is not None:
                await _store_response(session, origin.key_space, origin.idempotency, created)
    if request.job is not None:
        log_accepted(request.job)


async def rooms_of(session: AsyncSession | AsyncConnection, actors: Iterable[Actor]) -> Mapping[UUID, Room]:
    """Lock the projects of those of these actors that have limits, and return the room in each."""
    limited = {actor.project_id for actor in actors if actor.is_limited}
    return await lock_rooms(session, limited) if limited else {}


def entry_of(job: Job, actor: Actor) -> NewEntry:
    """Return the entry of the audit log for a job, or for its cancellation, that was accepted."""
    action = job.kind if job.cancel_requested_at is None else "job.cancel"
    if job.snapshot_id is not None:
        return new_entry(actor, action, job_id=job.id, subject_id=job.snapshot_id)
    return new_entry(actor, action, job_id=job.id, subject_id=job.volume_id, subject_name=job.volume_name)


def log_accepted(job: Job) -> None:
    """Log and count that a job, or its cancellation, was accepted; the log context adds the request id."""
    ids = log_fields(job_id=job.id, retry_of=job.retry_of, **subject_fields(job))
    if job.cancel_requested_at is None:
        metrics.current().jobs_accepted(job.kind)
    elif job.ended:
        metrics.current().jobs_finished(job.kind, job.status)
    log.info("job.accepted" if job.cancel_requested_at is None else "job.cancel_accepted", kind=job.kind, **ids)


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


async def _store_response(session: AsyncSession, caller: str, key: IdempotentRequest, created: Entity) -> None:
    status, body = key.render(created)
    query = update(IdempotencyKey).where(IdempotencyKey.caller == caller, IdempotencyKey.key == key.key)
    await session.execute(query.values(status=status, body=body))
