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

from domain.database import Database
from domain.errors import DatabaseUnavailable
from domain.grouped import Answer, Grouped, Item
from domain.jobs.foreman import Foreman
from domain.jobs.model import Ring
from domain.jobs.orders import WorkOrder
from domain.jobs.outcomes import Outcome
from domain.jobs.queue import JobQueue
from domain.services import Services
from domain.storage.driver import Fence, Grant, StorageBusy, StorageDriver, StorageFull, TransientStorageError
from domain.storage.memory import MemoryDriver
from tests.any_order.puppets import Accident, pause, present

SEALS = ("seal", "seal_snapshot")
OPERATIONS = (
    *("create", "expand", "delete", "take_snapshot", "restore_snapshot", "clone_snapshot", "delete_snapshot"),
    *SEALS,
)


class Fragile(Database):
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
        puppet, self.next_accident = present(), None
        if puppet is not None:
            puppet.busy += 1
        try:
            async with super().transaction() as session:
                yield session
                if accident is Accident.COMMIT_LOST:
                    raise DatabaseUnavailable
        finally:
            if puppet is not None:
                puppet.busy -= 1
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


class Witnessed(MemoryDriver):
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


class Bell(JobQueue):
    """The messages, in memory: what Redis has at the moment, and what was ever rung."""

    def __init__(self) -> None:
        self.messages: set[Ring] = set()
        self.rung: set[Ring] = set()

    async def ring(self, rings: Iterable[Ring]) -> None:
        for ring in rings:
            self.messages.add(ring)
            self.rung.add(ring)

    async def missing(self, rings: Sequence[Ring]) -> list[Ring]:
        return [ring for ring in rings if ring not in self.messages]

    def acknowledge(self, ring: Ring) -> asyncio.Future[None]:
        self.messages.discard(ring)
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    async def announce(self, *job_ids: UUID) -> None:
        """Nobody listens."""


class Alone(Grouped[Item, Answer]):
    """Sends each item by itself: a puppet that is never told to go on must hold up no other of its worker."""

    def hand_in(self, item: Item) -> asyncio.Future[Answer]:
        return asyncio.ensure_future(self._by_itself(item))

    async def _by_itself(self, item: Item) -> Answer:
        (answer,) = await self._send([item])
        if isinstance(answer, Exception):
            raise answer
        return answer


def one_by_one(services: Services) -> Services:
    """Have users ask each for himself."""
    intake = services.volumes._intake
    intake._creations = Alone(intake._create_all, most=1)
    intake._expansions = Alone(intake._expand_all, most=1)
    services.jobs._reads = Alone(services.jobs._read_all, most=1)
    return services


def overhear(foreman: Foreman) -> Foreman:
    """Have a puppet remember how it last meant its attempt to end."""
    foreman._claims = Alone(foreman._claim_all, most=1)
    foreman._late_claims = Alone(partial(foreman._claim_all, patience=1), most=1)
    foreman._settlements = defaultdict(lambda: Alone(foreman._settle_all, most=1))
    settle = foreman.settle

    async def overheard(job: WorkOrder, outcome: Outcome) -> bool:
        puppet = present()
        if puppet is not None:
            puppet.outcome = outcome
        return await settle(job, outcome)

    foreman.settle = overheard  # type: ignore[method-assign]
    return foreman
