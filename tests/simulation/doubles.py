"""What the puppets stand on: the real services, with a database and a storage at which each step can be held up."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.batching import Answer, Batcher, Item
from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import JobEngine
from domain.jobs.model import Dispatch
from domain.jobs.outcomes import Outcome
from domain.jobs.transport.job_queue import JobQueue
from domain.services import Services
from domain.storage.context import Fence, Grant
from domain.storage.driver import StorageDriver
from domain.storage.errors import StorageBusy, StorageFull, TransientStorageError
from domain.storage.memory import MemoryDriver
from tests.simulation.stepping import Accident, pause, present

SEALS = ("seal", "seal_snapshot")
OPERATIONS = (
    *("create", "expand", "delete", "take_snapshot", "restore_snapshot", "clone_snapshot", "delete_snapshot"),
    *SEALS,
)


class FaultyDatabase(Database):
    """A database whose transactions wait to be told to begin, and may come to grief at their commit."""

    #: What befalls the next transaction of somebody who is no puppet.
    next_accident: Accident | None = None

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        async with self.transaction() as session:
            yield await session.connection()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        accident = await pause("transaction") or self.next_accident
        stepped, self.next_accident = present(), None
        if stepped is not None:
            stepped.busy += 1
        try:
            async with super().transaction() as session:
                yield session
                if accident is Accident.COMMIT_LOST:
                    raise DatabaseUnavailable
        finally:
            if stepped is not None:
                stepped.busy -= 1
        if accident is Accident.ANSWER_LOST:
            raise DatabaseUnavailable


@dataclass(frozen=True)
class Publication:
    """Something that has happened to a volume or snapshot on the storage."""

    operation: str
    subject_id: UUID
    job_id: UUID
    fence: Fence
    in_time: bool


class JournalingMemoryDriver(MemoryDriver):
    """The driver in memory, and who published what on it."""

    def __init__(self) -> None:
        super().__init__()
        self.publications: list[Publication] = []

    def sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """The sizes of the volumes and of the snapshots that there are."""
        volumes = {str(volume_id): size for volume_id, size in self._sizes.items()}
        return volumes, {str(key[1]): size for key, size in self._snapshots.items()}

    def put(self, volume_id: UUID, size: int, snapshot_id: UUID | None = None) -> None:
        """Have a volume, or a snapshot of it, without any job."""
        if snapshot_id is None:
            self._sizes[volume_id] = size
        else:
            self._snapshots[volume_id, snapshot_id] = size

    @contextmanager
    def _publishing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        with super()._publishing(operation, subject_id, grant):
            yield
            self._note(operation, subject_id, grant)

    def _seal(self, operation: str, subject_id: UUID, grant: Grant) -> None:
        super()._seal(operation, subject_id, grant)
        self._note(operation, subject_id, grant)

    def _note(self, operation: str, subject_id: UUID, grant: Grant) -> None:
        in_time = operation in SEALS or monotonic() < grant.lease.deadline
        self.publications.append(Publication(operation, subject_id, grant.job_id, grant.fence, in_time))


class Staged:
    """Storage that waits to be told before and after each operation, and may fail on either side."""

    def __init__(self, inner: StorageDriver) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        return _staged(name, method) if name in OPERATIONS else method

    @classmethod
    def on(cls, inner: StorageDriver) -> StorageDriver:
        return cast("StorageDriver", cls(inner))


def _staged(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def staged(*args: Any) -> Any:
        _strike(name, await pause(name))
        result = await method(*args)
        _strike(name, await pause(f"{name} done"))
        return result

    return staged


def _strike(name: str, accident: Accident | None) -> None:
    if accident is Accident.TRANSIENT:
        raise TransientStorageError
    if accident is Accident.BUSY:
        raise StorageBusy
    if accident is Accident.PERMANENT and name not in SEALS:
        raise StorageFull


class SimulatedQueue(JobQueue):
    """The messages, in memory: what Redis has at the moment, and what was ever rung."""

    def __init__(self) -> None:
        self.messages: set[Dispatch] = set()
        self.rung: set[Dispatch] = set()

    async def dispatch(self, dispatches: Iterable[Dispatch]) -> None:
        for dispatch in dispatches:
            self.messages.add(dispatch)
            self.rung.add(dispatch)

    async def missing(self, dispatches: Sequence[Dispatch]) -> list[Dispatch]:
        return [dispatch for dispatch in dispatches if dispatch not in self.messages]

    def acknowledge(self, dispatch: Dispatch) -> asyncio.Future[None]:
        self.messages.discard(dispatch)
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    async def announce(self, *job_ids: UUID) -> None:
        """Nobody listens."""


class SingleBatcher(Batcher[Item, Answer]):
    """Sends each item by itself: a puppet that is never told to go on must hold up no other of its worker."""

    def submit(self, item: Item) -> asyncio.Future[Answer]:
        return asyncio.ensure_future(self._by_itself(item))

    async def _by_itself(self, item: Item) -> Answer:
        (answer,) = await self._send([item])
        if isinstance(answer, Exception):
            raise answer
        return answer


def each_in_own_transaction(services: Services) -> Services:
    """Have users ask each for himself."""
    intake = services.volumes._requests
    intake._creates = SingleBatcher(intake._create_batch, max_batch=1)
    intake._expands = SingleBatcher(intake._expand_batch, max_batch=1)
    services.jobs._reads = SingleBatcher(services.jobs._read_batch, max_batch=1)
    return services


def count_calls(engine: JobEngine) -> JobEngine:
    """Have a puppet remember how it last meant its attempt to end."""
    engine._claims = SingleBatcher(engine._claim_batch, max_batch=1)
    engine._claims_of_locked_rows = SingleBatcher(partial(engine._claim_batch, lock_timeout=1), max_batch=1)
    engine._settlements = defaultdict(lambda: SingleBatcher(engine._settle_batch, max_batch=1))
    settle = engine.settle

    async def overheard(job: ClaimedJob, outcome: Outcome) -> bool:
        stepped = present()
        if stepped is not None:
            stepped.outcome = outcome
        return await settle(job, outcome)

    engine.settle = overheard  # type: ignore[method-assign]
    return engine
