"""The services of the front of the house in memory, so that HTTP is tested without a server."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from api.main import Opening
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.jobs.stats import Stats
from domain.jobs.transport.job_queue import QueueUnavailable
from domain.services import Services
from domain.storage.backends import Backends
from tests.unit.fake_bulk import FakeBulk, FakeBulkSnapshots, FakeExpansion
from tests.unit.fake_snapshots import FakeSnapshots
from tests.unit.fake_volumes import NOON, FakeJobs, FakeVolumes, job_row, snapshot_row, volume_row

__all__ = ["NOON", "FakeServices", "job_row", "snapshot_row", "volume_row"]


@dataclass
class FakeWatcher:
    """Sees every job end as soon as somebody waits for it, unless told otherwise."""

    jobs: FakeJobs
    ends: bool = True
    how: JobStatus = JobStatus.SUCCEEDED
    database_is_up: bool = True
    waited: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        yield

    def release(self) -> None:
        """Nobody is ever kept waiting."""

    async def follow(self, job_id: UUID, version: int | None) -> AsyncGenerator[Job, None]:
        """Show the job as it is, if that is new, and then its end."""
        job = self.jobs.rows[job_id]
        if job.version != version:
            yield job
        if not job.ended:
            await self.ended(job_id, 0)
            yield job

    async def ended(self, job_id: UUID, seconds: float) -> None:
        self.waited.append(seconds)
        if not self.database_is_up:
            raise DatabaseUnavailable
        if self.ends:
            job = self.jobs.rows[job_id]
            job.status, job.finished_at, job.version = self.how, NOON, job.version + 1


@dataclass
class FakeServer:
    """PostgreSQL or Redis, up or down."""

    error: type[Exception]
    up: bool = True

    async def ping(self) -> None:
        if not self.up:
            raise self.error


@dataclass
class FakeSignals:
    """What waits and what was mended; None when nobody can tell."""

    seen: Stats | None = field(
        default_factory=lambda: Stats(2, 1.5, {"rescued": 1, "retried": 3, "lost_messages": 4}),
    )

    async def latest(self) -> Stats | None:
        return self.seen


class FakeServices:
    """What the front of the house holds, in memory."""

    def __init__(self) -> None:
        self.backends = Backends.open({"memory": "memory:?capacity=10GiB", "null": "null:"}, threads=1)
        self.jobs = FakeJobs()
        self.volumes = FakeVolumes(self.jobs, self.backends)
        self.snapshots = FakeSnapshots(self.jobs, self.volumes)
        self.bulk = FakeBulk(self.jobs)
        self.bulk_snapshots = FakeBulkSnapshots(self.jobs)
        self.expansion = FakeExpansion(self.jobs, self.volumes)
        self.watcher = FakeWatcher(self.jobs)
        self.signals = FakeSignals()
        self.database = FakeServer(DatabaseUnavailable)
        self.queue = FakeServer(QueueUnavailable)

    def opening(self) -> Opening:
        """Open these instead of the real ones."""

        return lambda: nullcontext(cast("Services", self))
