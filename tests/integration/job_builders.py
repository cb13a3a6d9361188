"""Builders of rows for tests, and short ways to read and change them."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, Row, event, text
from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job, Worker
from domain.jobs.transport.job_queue import JobQueue, QueueUnavailable
from domain.operations import VolumeState
from domain.services import Services
from domain.volumes.model import Growth, Volume
from worker.main import worker_handlers

MIB = 2**20
#: An address where no server listens.
NO_REDIS = "redis://127.0.0.1:1"


async def a_volume(services: Services, *, size: int = MIB, name: str = "", backend: str = "memory") -> Volume:
    """Insert an available volume, without any storage work."""
    volume = Volume(
        id=uuid7(),
        name=name or uuid4().hex,
        backend=backend,
        state=VolumeState.AVAILABLE,
        size=size,
        version=1,
        labels={},
        project_id=DEFAULT_PROJECT,
    )
    async with services.database.transaction() as session:
        session.add(volume)
    return volume


async def a_queued_expand(services: Services, *, by: int = MIB) -> Job:
    """Request an expansion of a new volume."""
    volume = await a_volume(services)
    return await services.volumes.request_expand(volume.id, Growth(by=by))


async def queued_jobs(services: Services, count: int) -> None:
    """Insert queued jobs that were dispatched a minute ago, without volumes or messages."""
    await sql(
        services,
        "INSERT INTO jobs (id, kind, backend, status, version, params, attempt, max_attempts, epoch, dispatched_at)"
        " SELECT gen_random_uuid(), 'volume.create', 'memory', 'queued', 1, '{}', 0, 8, 0, now() - interval '1 minute'"
        f" FROM generate_series(1, {count})",
    )


def an_engine(services: Services) -> JobEngine:
    """Return the engine of a new worker that rescues without a grace period."""
    return JobEngine(
        services.database,
        services.queue,
        worker_handlers(services, lambda: 1),
        worker=Worker(id=uuid7(), host="test", pid=os.getpid()),
        served=services.backends.served,
        lease=services.settings.lease_seconds,
        respect_grace_period=False,
    )


async def sql(services: Services, statement: str, **values: Any) -> list[Row[Any]]:
    async with services.database.autocommit() as connection:
        result = await connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []


async def set_job(services: Services, job_id: UUID, assignment: str) -> None:
    """Change a job's row directly, as for what a test cannot wait for."""
    await sql(services, f"UPDATE jobs SET {assignment} WHERE id = :id", id=job_id)


async def run_out(services: Services, *job_ids: UUID) -> None:
    """Expire the leases of these jobs."""
    for job_id in job_ids:
        await set_job(services, job_id, "lease_expires_at = now() - interval '1 second'")


async def row(services: Services, job_id: UUID) -> Job:
    return await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)


async def volume_row(services: Services, volume_id: UUID | None) -> dict[str, Any]:
    (found,) = await sql(services, "SELECT * FROM volumes WHERE id = :id", id=volume_id)
    return dict(found._mapping)


async def everything(services: Services) -> list[Row[Any]]:
    """Return all jobs and volumes, to check that nothing has changed."""
    return [
        *await sql(services, "SELECT * FROM jobs ORDER BY id"),
        *await sql(services, "SELECT * FROM volumes ORDER BY id"),
    ]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until the condition holds, for at most 20 s; less and less often, as a query costs CPU time."""
    pause = 0.01
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.05)


async def ended(services: Services, job_id: UUID) -> Job:
    async def has_ended() -> bool:
        return (await row(services, job_id)).ended

    await until(has_ended)
    return await row(services, job_id)


async def writable_within(queue: JobQueue, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await queue.ping()
            except QueueUnavailable:
                await asyncio.sleep(0.05)


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Collect the statements that are sent while the block runs."""
    sent: list[str] = []

    def on_statement(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", on_statement)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", on_statement)
