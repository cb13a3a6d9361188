"""The backends as PostgreSQL knows them: what they are, who serves them, and what is wrong.

A place, such as the root of a ``file:`` backend, carries an identity. A process serves a backend only while it finds
there the identity that PostgreSQL has for it: a disk that is not mounted, or another one, is left alone.

`BackendRegistry` compares the backends of this process with PostgreSQL, and says there what it serves. What every
process may know of all backends, without reaching one, is in `domain.storage.directory`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import BigInteger, Text, Update, case, column, delete, func, select, table, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.sql import from_now
from domain.errors import DatabaseUnavailable, StorageError
from domain.storage.backends import NOT_USED_YET, Backends
from domain.storage.checked import is_capacity
from domain.storage.driver import Capacity, StorageDriver
from domain.storage.model import ANSWER_SECONDS, LOOK_SECONDS, Backend, BackendServer

#: Seconds between two sums of what a backend has promised.
_SUM_SECONDS: Final = 60.0
#: How many volumes are looked for at a place without an identity.
SAMPLE: Final = 10

log = structlog.get_logger(__name__)


class Identity(NamedTuple):
    """The content of an identity file: the installation and backend that a place belongs to, and an id of its own."""

    installation: str
    backend: str
    id: str

    @classmethod
    def parse(cls, written: str) -> "Identity | None":
        """Parse the content of an identity file; return None if it is none."""
        try:
            return cls(**json.loads(written))
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        return json.dumps(self._asdict())


#: Returns some volumes that have data on a backend, up to `SAMPLE`.
SampleVolumes = Callable[[AsyncSession, str], Awaitable[Sequence[UUID]]]


class BackendRegistry:
    """Compares the backends of this process with what PostgreSQL has of them."""

    def __init__(
        self, database: Database, backends: Backends, installation: UUID, sample_volumes: SampleVolumes
    ) -> None:
        self._database = database
        self._backends = backends
        self._installation = str(installation)
        self._sample_volumes = sample_volumes
        self._announced: dict[str, str | None] = {}
        #: Those that storage has not answered yet.
        self._examinations: dict[str, asyncio.Task[str | None]] = {}

    async def register(self) -> None:
        """Add the backends that PostgreSQL does not know yet."""
        rows = [
            {
                "name": name,
                "driver": self._backends.scheme(name),
                "position": position,
                "path_pattern": _path_pattern(self._backends.driver(name)),
            }
            for position, name in enumerate(self._backends)
        ]
        async with self._database.transaction() as session:
            await session.execute(insert(Backend).values(rows).on_conflict_do_nothing())

    async def look(self, *, adopt: bool = False) -> None:
        """Find out which backends this process can serve.

        A place without an identity gets one if ``adopt``, unless PostgreSQL knows one, or volumes that are not there.

        Raises:
            DatabaseUnavailable: what is served does not change.
        """
        async with self._database.transaction() as session:
            known = {row.name: row.identity for row in await session.scalars(select(Backend))}
        problems = await asyncio.gather(*(self._problem(name, known.get(name), adopt=adopt) for name in self._backends))
        self._backends.set_problems(dict(zip(self._backends, problems, strict=True)))

    async def announce(self, worker_id: UUID, host: str) -> None:
        """Record what this worker serves, and the capacity of that; log what has changed."""
        problems = {name: self._backends.problem(name) for name in self._backends}
        served = [name for name, problem in problems.items() if problem is None]
        capacities = dict(zip(served, await asyncio.gather(*map(self._capacity, served)), strict=True))
        rows = [
            {
                "backend": name,
                "worker_id": worker_id,
                "host": host,
                "problem": problem,
                "filesystems": sorted(self._backends.driver(name).filesystems),
            }
            for name, problem in sorted(problems.items())
        ]
        new = insert(BackendServer).values(rows)
        unchanged = BackendServer.problem.is_not_distinct_from(new.excluded.problem)
        since = case((unchanged, BackendServer.since), else_=func.now())
        announced = {name: new.excluded[name] for name in ("problem", "filesystems")}
        changes = {**announced, "seen_at": func.now(), "since": since}
        async with self._database.transaction() as session:
            await session.execute(new.on_conflict_do_update(index_elements=["backend", "worker_id"], set_=changes))
            for name, capacity in sorted(capacities.items()):
                await session.execute(_recorded(name, self._backends.driver(name), capacity))
                await session.execute(_summed(name))
        for name, problem in problems.items() - self._announced.items():
            if problem is None:
                log.info("backend.served", backend=name)
            else:
                log.error("backend.not_served", backend=name, problem=problem)
        self._announced = problems

    async def run_forever(self, worker_id: UUID, host: str) -> None:
        """Look at the backends and announce what this worker serves, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(adopt=True)
                await self.announce(worker_id, host)
            except DatabaseUnavailable as error:
                log.debug("backends.not_announced", error=str(error))  # the heartbeat logs it
            except Exception:
                log.exception("backends.not_announced")

    async def withdraw(self, worker_id: UUID) -> None:
        """Remove a worker that is shutting down, and those that have been silent for an hour."""
        async with self._database.transaction() as session:
            silent = BackendServer.seen_at < from_now(-3600)
            await session.execute(delete(BackendServer).where((BackendServer.worker_id == worker_id) | silent))

    async def _problem(self, name: str, known: str | None, *, adopt: bool) -> str | None:
        """Return why this process must not serve a backend. Storage that hangs is not asked again meanwhile."""
        examination = self._examinations.pop(name, None)
        if examination is None:
            examination = asyncio.create_task(self._examine(name, known, adopt=adopt))
        done, _ = await asyncio.wait({examination}, timeout=ANSWER_SECONDS)
        if done:
            return examination.result()
        self._examinations[name] = examination
        return f"the storage has not answered within {ANSWER_SECONDS:g} s"

    async def _examine(self, name: str, known: str | None, *, adopt: bool) -> str | None:
        driver = self._backends.driver(name)
        if driver.place is None:
            return None
        try:
            found = await driver.identity()
            if found is not None:
                return await self._compare(name, driver, found, known)
            return await self._adopt(name, driver) if known is None and adopt else _no_identity(driver, known)
        except StorageError as error:
            return error.message.rstrip(".")

    async def _adopt(self, name: str, driver: StorageDriver) -> str | None:
        """Give a new place an identity, unless it should have volumes."""
        async with self._database.transaction() as session:
            volumes = await self._sample_volumes(session, name)
        found = await driver.initialize(str(Identity(self._installation, name, str(uuid7()))), volumes)
        return await self._compare(name, driver, found, None)

    async def _compare(self, name: str, driver: StorageDriver, found: str, known: str | None) -> str | None:
        identity = Identity.parse(found)
        if identity is None:
            return f"the identity file of {driver.place} is damaged"
        if identity.installation != self._installation:
            return f"{driver.place} belongs to another installation ({identity.installation})"
        if identity.backend != name:
            return f"{driver.place} is that of the backend {identity.backend!r}"
        if known is None:
            known = await self._record_identity(name, found)
        if found != known:
            return f"{driver.place} is another one than the one that is known"
        await driver.accept(found)
        return None

    async def _record_identity(self, name: str, found: str) -> str | None:
        """Make this the identity of the backend, unless it has one; return the one it has."""
        async with self._database.transaction() as session:
            known = func.coalesce(Backend.identity, found)
            query = update(Backend).where(Backend.name == name).values(identity=known).returning(Backend.identity)
            return await session.scalar(query.execution_options(synchronize_session=False))

    async def _capacity(self, name: str) -> Capacity | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                capacity = await self._backends.driver(name).capacity()
        except (StorageError, TimeoutError):
            return None
        return capacity if is_capacity(capacity) else None


def _recorded(name: str, driver: StorageDriver, capacity: Capacity | None) -> Update:
    values: dict[str, Any] = {
        "served_since": func.coalesce(Backend.served_since, func.now()),
        "path_pattern": _path_pattern(driver),
        "overcommit": driver.overcommit,
    }
    if capacity is not None:
        values |= {"total": capacity.total, "used": capacity.used, "free": capacity.free, "measured_at": func.now()}
    return update(Backend).where(Backend.name == name).values(values)


def _summed(name: str) -> Update:
    """Sum up the sizes of a backend's volumes, once a minute over all workers: there may be a million of them."""
    volumes = table("volumes", column("backend", Text), column("size", BigInteger))  # this package knows no other
    promised = select(func.coalesce(func.sum(volumes.c.size), 0)).where(volumes.c.backend == name).scalar_subquery()
    due = Backend.promised_at.is_(None) | (Backend.promised_at < from_now(-_SUM_SECONDS))
    return update(Backend).where(Backend.name == name, due).values(promised=promised, promised_at=func.now())


def _no_identity(driver: StorageDriver, known: str | None) -> str:
    if known is None:
        return NOT_USED_YET
    return (
        f"{driver.place} has no identity file: is its disk mounted? "
        f"If it is the right one all the same, write this line to {driver.place}/.cistern: {known}"
    )


def _path_pattern(driver: StorageDriver) -> str | None:
    """Return the driver's path of any volume, with ``{id}`` in place of the id."""
    nil = UUID(int=0)
    path = driver.path(nil)
    return None if path is None else path.replace(str(nil), "{id}")
