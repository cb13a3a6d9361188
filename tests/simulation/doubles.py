"""The real services on a database, a storage and a queue whose steps the scheduler controls."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, ScalarResult
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.batching import Batcher, Item, Result
from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Outcome
from domain.jobs.engine import JobEngine
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue
from domain.services import Services
from domain.storage.context import Fence, Grant
from domain.storage.driver import StorageDriver
from domain.storage.errors import StorageBusy, StorageFull, TransientStorageError
from domain.storage.memory import MemoryDriver
from tests.simulation.scheduler import Fault, current_stepped_task, step

SEALS = ("seal", "seal_snapshot")
OPERATIONS = (
    *("create", "expand", "delete", "take_snapshot", "restore_snapshot", "clone_snapshot", "delete_snapshot"),
    *SEALS,
)


class FaultyDatabase(Database):
    """A database whose transactions are steps of the scheduler, and may fail at their commit."""

    #: The fault of the next transaction outside of stepped tasks.
    next_fault: Fault | None = None

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        yield cast("AsyncConnection", _AutocommitConnection(self))

    @asynccontextmanager
    async def transaction(
        self, *, statement_seconds: float | None = None, reserved: bool = False
    ) -> AsyncIterator[AsyncSession]:
        fault = await step("transaction") or self.next_fault
        stepped, self.next_fault = current_stepped_task(), None
        if stepped is not None:
            stepped.open_transactions += 1
        try:
            async with super().transaction(statement_seconds=statement_seconds, reserved=reserved) as session:
                yield session
                if fault is Fault.COMMIT_LOST:
                    raise DatabaseUnavailable
        finally:
            if stepped is not None:
                stepped.open_transactions -= 1
        if fault is Fault.ANSWER_LOST:
            raise DatabaseUnavailable


@dataclass(frozen=True)
class _AutocommitConnection:
    """A connection on which each statement is a step of its own."""

    database: FaultyDatabase

    async def execute(self, *arguments: Any) -> CursorResult[Any]:
        async with self.database.transaction() as session:
            connection = await session.connection()
            result: CursorResult[Any] = await connection.execute(*arguments)
            return result

    async def scalars(self, *arguments: Any) -> ScalarResult[Any]:
        return (await self.execute(*arguments)).scalars()


@dataclass(frozen=True)
class Publication:
    """One effect on a volume or snapshot in the storage."""

    operation: str
    subject_id: UUID
    job_id: UUID
    fence: Fence
    within_lease: bool


class JournalingMemoryDriver(MemoryDriver):
    """The memory driver with a journal of publications."""

    def __init__(self) -> None:
        super().__init__()
        self.publications: list[Publication] = []

    def sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the sizes of all volumes and of all snapshots, by id."""
        volumes = {str(volume_id): size for volume_id, size in self._sizes.items()}
        return volumes, {str(key[1]): size for key, size in self._snapshots.items()}

    def put(self, volume_id: UUID, size: int, snapshot_id: UUID | None = None) -> None:
        """Add a volume, or a snapshot of it, without a job."""
        if snapshot_id is None:
            self._sizes[volume_id] = size
        else:
            self._snapshots[volume_id, snapshot_id] = size

    @contextmanager
    def _publishing(self, operation: str, subject_id: UUID, grant: Grant, *, seal: bool = False) -> Iterator[None]:
        with super()._publishing(operation, subject_id, grant, seal=seal):
            yield
            within_lease = seal or monotonic() < grant.state.deadline
            self.publications.append(Publication(operation, subject_id, grant.job_id, grant.fence, within_lease))


class SteppedStorage:
    """Storage whose operations are preceded and followed by a step, either of which may fail."""

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        return _stepped(name, method) if name in OPERATIONS else method

    @classmethod
    def around(cls, inner: StorageDriver) -> StorageDriver:
        return cast("StorageDriver", cls(inner))


def _stepped(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def stepped(*args: Any, **options: Any) -> Any:
        _raise_fault(name, await step(name))
        result = await method(*args, **options)
        _raise_fault(name, await step(f"{name} done"))
        return result

    return stepped


def _raise_fault(operation: str, fault: Fault | None) -> None:
    if fault is Fault.TRANSIENT:
        raise TransientStorageError
    if fault is Fault.BUSY:
        raise StorageBusy
    if fault is Fault.PERMANENT and operation not in SEALS:
        raise StorageFull


class SimulatedQueue(JobQueue):
    """The messages in memory: those that Redis has at the moment, and all that were ever sent."""

    def __init__(self) -> None:
        self.messages: set[JobMessage] = set()
        self.sent: set[JobMessage] = set()

    async def dispatch(self, messages: Iterable[JobMessage]) -> None:
        for message in map(received, messages):
            self.messages.add(message)
            self.sent.add(message)

    async def missing(self, messages: Sequence[JobMessage]) -> list[JobMessage]:
        return [message for message in messages if received(message) not in self.messages]

    def acknowledge(self, message: JobMessage) -> asyncio.Future[None]:
        self.messages.discard(received(message))
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    async def announce(self, *job_ids: UUID) -> None:
        """Do nothing: there are no subscribers."""


class SingleBatcher(Batcher[Item, Result]):
    """Sends each item on its own: a stepped task that never continues must not block others in its batch."""

    def submit(self, item: Item) -> asyncio.Future[Result]:
        return asyncio.ensure_future(self._send_one(item))

    async def _send_one(self, item: Item) -> Result:
        (result,) = await self._send([item])
        if isinstance(result, Exception):
            raise result
        return result


def without_request_batching(services: Services) -> Services:
    """Make the services accept and read each request on its own."""
    batches = services.volumes._batches
    batches._create_batchers[None] = SingleBatcher(batches._create_batch, max_batch=1)
    batches._expand_batchers[None] = SingleBatcher(batches._expand_batch, max_batch=1)
    services.jobs._reads = SingleBatcher(services.jobs._read_batch, max_batch=1)
    return services


def recording_outcomes(engine: JobEngine) -> JobEngine:
    """Make the engine claim and settle each job on its own, and record each outcome in its stepped task."""
    engine._claim_batcher = SingleBatcher(engine._claim_batch, max_batch=1)
    engine._waiting_claim_batcher = SingleBatcher(partial(engine._claim_batch, lock_timeout=1), max_batch=1)
    engine._settlement_batchers = defaultdict(lambda: SingleBatcher(engine._settle_batch, max_batch=1))
    settle = engine.settle

    async def record_and_settle(job: ClaimedJob, outcome: Outcome) -> bool:
        stepped = current_stepped_task()
        if stepped is not None:
            stepped.outcome = outcome
        return await settle(job, outcome)

    engine.settle = record_and_settle  # type: ignore[method-assign]
    return engine


def received(message: JobMessage) -> JobMessage:
    """Return the message as a worker receives it: without its project."""
    return message._replace(project_id=None)
