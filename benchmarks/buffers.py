"""How many pages the hot statements touch, in a small job book and in one of a million jobs.

    python benchmarks/buffers.py        some minutes, most of them to write a million jobs

What is counted are the pages in `EXPLAIN (ANALYZE, BUFFERS)` of the very statements that workers and the API send,
which is the same on every machine. Each step is run in a transaction that is taken back.
"""

# ruff: noqa: INP001, T201, SLF001 - no package, it is there to print, and it listens to what the repositories send

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from stage import private_settings, vacuum

from domain.db.database import Database
from domain.jobs.model import Dispatch
from domain.jobs.states import JobStatus
from domain.jobs.store.dispatch import DispatchRepository
from domain.jobs.store.jobs import JobFilter, JobRepository
from domain.jobs.store.leases import LeaseRepository, Settlement
from domain.settings import Settings
from domain.volumes.repository import Release, VolumeRepository
from domain.volumes.states import VolumeState

#: So many jobs are claimed and settled at once.
BATCH: Final = 100
FINISHED: Final = 1_000_000
QUEUED: Final = 100_000
KINDS: Final = ("volume.create", "volume.expand", "volume.delete")
WORKER: Final = uuid4()

Step = Callable[[AsyncSession], Awaitable[object]]


def main() -> None:
    """Count, and print a table."""
    with private_settings() as settings:
        asyncio.run(count(settings))


async def count(settings: Settings) -> None:
    """Look at the same steps in an empty book, one where many jobs wait, and one with a long past besides."""
    database = Database(settings.database_url)
    books = []
    for finished, queued in ((0, BATCH), (0, QUEUED), (FINISHED, QUEUED)):
        batch = await write_book(database, finished, queued)
        books.append({name: await pages(database, step) for name, step in steps(batch).items()})
    await database.close()
    print(f"\n| step | only these {BATCH} | of {QUEUED:,} queued | beside {FINISHED:,} finished", end="")
    print(f" | finished / these {BATCH} | finished / queued |")
    print("|---|---|---|---|---|---|")
    for name, few in books[0].items():
        many, all_ = books[1][name], books[2][name]
        print(f"| {name} | {few} | {many} | {all_} | {all_ / few:.2f} | {all_ / many:.2f} |")


async def write_book(database: Database, finished: int, queued: int) -> Sequence[tuple[UUID, UUID]]:
    """Have so many jobs, each of a volume of its own; returns the jobs and volumes of a batch of queued ones."""
    async with database.transaction() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(text("TRUNCATE jobs, job_items, volumes, snapshots CASCADE"))
        await session.execute(_VOLUMES, {"volumes": queued})
        await session.execute(_FINISHED, {"jobs": finished})
        await session.execute(_QUEUED)
        rows = (await session.execute(_SOME, {"batch": BATCH})).all()
    await vacuum(database)
    return [(row[0], row[1]) for row in rows]


_VOLUMES: Final = text("""
    INSERT INTO volumes (id, name, backend, state, size, version, labels, job_id)
    SELECT uuidv7(), 'volume-' || n, 'local', 'expanding', 1048576, 2, '{}', uuidv7()
    FROM generate_series(1, :volumes) AS n
""")
#: Of a hundred that have ended one has failed; ids grow with time, as those that are made in Python do.
_FINISHED: Final = text("""
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, volume_id, backend, result,
                      dispatched_at, run_at, started_at, finished_at, created_at, worker_id)
    SELECT uuidv7(age), 'volume.expand', CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 3,
           '{"to_size": 2097152, "fence": 2}', 1, 8, 0, gen_random_uuid(), 'local', '{"size": 2097152}', now() + age,
           now() + age, now() + age, now() + age, now() + age, gen_random_uuid()
    FROM (SELECT n, (n - :jobs - 1) * interval '1 second' AS age FROM generate_series(1, :jobs) AS n) AS past
""")
_QUEUED: Final = text("""
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, volume_id, backend)
    SELECT job_id, 'volume.expand', 'queued', 1, '{"to_size": 2097152, "fence": 2}', 0, 8, 0, id, 'local'
    FROM volumes
""")
_SOME: Final = text("SELECT id, volume_id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT :batch")


def steps(batch: Sequence[tuple[UUID, UUID]]) -> dict[str, Step]:
    """What workers, housekeeping and the API do all the time."""
    dispatches = [Dispatch(job_id, 0) for job_id, _ in batch]
    cursor = max(job_id for job_id, _ in batch)

    async def claim(session: AsyncSession) -> object:
        return await LeaseRepository(session).claim(dispatches, worker_id=WORKER, kinds=KINDS, lease=15)

    async def settle(session: AsyncSession) -> None:
        ends = [Settlement(job_id, 0, JobStatus.SUCCEEDED, result={"size": 2097152}) for job_id, _ in batch]
        await LeaseRepository(session).settle(ends, worker_id=WORKER, lock_timeout=1)
        endings = [Release(volume_id, job_id, 2097152) for job_id, volume_id in batch]
        await VolumeRepository(session).release(endings, VolumeState.AVAILABLE)

    async def claim_and_settle(session: AsyncSession) -> None:
        await claim(session)
        await settle(session)

    def listing(before: UUID | None = None, **wanted: Any) -> Step:
        return lambda session: JobRepository(session).page(JobFilter(**wanted), before=before, limit=50)

    return {
        f"claim {BATCH}": claim,
        f"claim and settle {BATCH}": claim_and_settle,
        "poll one": lambda session: JobRepository(session).get_many([batch[0][0]]),
        "list the newest": listing(),
        "list from a cursor": listing(cursor),
        "list the queued": listing(status=JobStatus.QUEUED),
        "list the running": listing(status=JobStatus.RUNNING),
        "list the failed": listing(status=JobStatus.FAILED),
        "list those of a volume": listing(volume_id=batch[0][1]),
        "dispatch due jobs": lambda session: DispatchRepository(session, KINDS).mark_due(500),
    }


async def pages(database: Database, step: Step) -> int:
    """Count the pages that a step's statements touch, in memory or on disk."""
    sent: list[tuple[str, Any]] = []
    async with _taken_back(database) as session:
        with _overheard(database, sent):
            await step(session)
    touched = 0
    async with _taken_back(database) as session:
        connection = await session.connection()
        for statement, parameters in sent:
            explained = await connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            )
            touched += _touched(explained.scalar_one())
    return touched


def _touched(explained: Any) -> int:
    plan = (json.loads(explained) if isinstance(explained, str) else explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@asynccontextmanager
async def _taken_back(database: Database) -> AsyncIterator[AsyncSession]:
    async with database._sessions() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        yield session
        await session.rollback()


@contextmanager
def _overheard(database: Database, sent: list[tuple[str, Any]]) -> Iterator[None]:
    """Remember what is sent as long as the block lasts."""

    def hear(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", hear)


if __name__ == "__main__":
    main()
