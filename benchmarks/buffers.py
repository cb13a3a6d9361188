"""Count the pages that the hot statements touch, in a small jobs table and in one with a million rows.

    python benchmarks/buffers.py        takes some minutes, most of them to insert a million jobs

The counts are those of `EXPLAIN (ANALYZE, BUFFERS)` for the very statements that workers and the API send, so they
hardly depend on the machine. Each step runs in a transaction that is rolled back.
"""

# ruff: noqa: INP001, T201, SLF001 - not a package, its output is printed, and it records the statements of the repositories

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

from servers import MIB, private_settings, vacuum
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.jobs.model import JobMessage
from domain.jobs.states import JobStatus
from domain.jobs.store.dispatch import DispatchRepository
from domain.jobs.store.jobs import JobFilter, JobRepository
from domain.jobs.store.leases import LeaseRepository, Settlement
from domain.operations import VolumeState
from domain.settings import Settings
from domain.volumes.repository import Release, VolumeRepository

#: Number of jobs claimed and settled at once.
BATCH: Final = 100
FINISHED: Final = 1_000_000
QUEUED: Final = 100_000
KINDS: Final = ("volume.create", "volume.expand", "volume.delete")
WORKER: Final = uuid4()
_INSERT_SECONDS: Final = 600

#: Pairs: the id of a job, and that of its volume.
Batch = Sequence[tuple[UUID, UUID]]
Step = Callable[[AsyncSession], Awaitable[object]]


def main() -> None:
    """Count pages, and print a table."""
    with private_settings() as settings:
        asyncio.run(count(settings))


async def count(settings: Settings) -> None:
    """Run the same steps with only one batch of jobs, with many queued ones, and with many finished ones as well."""
    database = Database(settings.database_url)
    columns = []
    for finished, queued in ((0, BATCH), (0, QUEUED), (FINISHED, QUEUED)):
        batch = await insert_jobs(database, finished, queued)
        columns.append({name: await pages(database, step) for name, step in steps(batch).items()})
    await database.close()
    print(f"\n| step | {BATCH} queued | {QUEUED:,} queued | and {FINISHED:,} finished", end="")
    print(f" | finished / {BATCH} queued | finished / {QUEUED:,} queued |")
    print("|---|---|---|---|---|---|")
    for name, few in columns[0].items():
        many, all_ = columns[1][name], columns[2][name]
        print(f"| {name} | {few} | {many} | {all_} | {all_ / few:.2f} | {all_ / many:.2f} |")


async def insert_jobs(database: Database, finished: int, queued: int) -> Batch:
    """Replace all data by these jobs, each with its own volume; return the jobs and volumes of one queued batch."""
    async with database.transaction(statement_seconds=_INSERT_SECONDS) as session:
        await session.execute(text("TRUNCATE jobs, job_items, volumes, snapshots CASCADE"))
        await session.execute(_VOLUMES, {"volumes": queued})
        await session.execute(_FINISHED, {"jobs": finished})
        await session.execute(_QUEUED)
        rows = (await session.execute(_ONE_BATCH, {"batch": BATCH})).all()
    await vacuum(database)
    return [(row[0], row[1]) for row in rows]


_VOLUMES: Final = text("""
    INSERT INTO volumes (id, name, backend, state, size, version, labels, job_id)
    SELECT uuidv7(), 'volume-' || n, 'local', 'expanding', 1048576, 2, '{}', uuidv7()
    FROM generate_series(1, :volumes) AS n
""")
#: One in a hundred jobs has failed; ids increase with time, like those created in Python.
_FINISHED: Final = text("""
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, volume_id, backend, result,
                      dispatched_at, run_at, started_at, finished_at, created_at, worker_id)
    SELECT uuidv7(age), 'volume.expand', CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 3,
           '{"to_size": 2097152, "fence_version": 2}', 1, 8, 0, gen_random_uuid(), 'local', '{"size": 2097152}',
           now() + age, now() + age, now() + age, now() + age, now() + age, gen_random_uuid()
    FROM (SELECT n, (n - :jobs - 1) * interval '1 second' AS age FROM generate_series(1, :jobs) AS n) AS past
""")
_QUEUED: Final = text("""
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, volume_id, backend)
    SELECT job_id, 'volume.expand', 'queued', 1, '{"to_size": 2097152, "fence_version": 2}', 0, 8, 0, id, 'local'
    FROM volumes
""")
_ONE_BATCH: Final = text("SELECT id, volume_id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT :batch")


async def claim(session: AsyncSession | AsyncConnection, batch: Batch) -> None:
    """Claim these jobs, as a worker does."""
    messages = [JobMessage(job_id, 0) for job_id, _ in batch]
    await LeaseRepository(session).claim(messages, worker_id=WORKER, kinds=KINDS, backends=("local",), lease=60)


async def settle(session: AsyncSession, batch: Batch) -> None:
    """Settle these jobs as succeeded, and release their volumes, as a worker does."""
    ends = [Settlement(job_id, 0, JobStatus.SUCCEEDED, result={"size": 2 * MIB}) for job_id, _ in batch]
    await LeaseRepository(session).settle(ends, worker_id=WORKER, lock_timeout=1)
    releases = [Release(volume_id, job_id, 2 * MIB) for job_id, volume_id in batch]
    await VolumeRepository(session).release(releases, VolumeState.AVAILABLE)


def steps(batch: Batch) -> dict[str, Step]:
    """Return the frequent steps of workers, maintenance and the API."""
    cursor = max(job_id for job_id, _ in batch)

    async def claim_and_settle(session: AsyncSession) -> None:
        await claim(session, batch)
        await settle(session, batch)

    def listing(before: UUID | None = None, **filters: Any) -> Step:
        return lambda session: JobRepository(session).page(
            JobFilter(**filters), DEFAULT_PROJECT, before=before, limit=50
        )

    return {
        f"claim {BATCH}": lambda session: claim(session, batch),
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
    """Return the number of pages that a step's statements touch, in memory or on disk."""
    sent: list[tuple[str, Any]] = []
    async with _rolled_back(database) as session:
        with _recorded(database, sent):
            await step(session)
    touched = 0
    async with _rolled_back(database) as session:
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
async def _rolled_back(database: Database) -> AsyncIterator[AsyncSession]:
    async with database._sessions() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        yield session
        await session.rollback()


@contextmanager
def _recorded(database: Database, sent: list[tuple[str, Any]]) -> Iterator[None]:
    """Append the statements that are sent during the block to ``sent``."""

    def record(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", record)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", record)


if __name__ == "__main__":
    main()
