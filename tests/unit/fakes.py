"""Fakes of all services that the API uses, in memory, so that routes are tested without servers."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from api.main import ServicesFactory
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job, Worker
from domain.jobs.states import JobStatus
from domain.jobs.stats import Stats
from domain.jobs.transport.job_queue import QueueUnavailable
from domain.jobs.workers import WorkerStatus
from domain.services import Services
from domain.settings import Settings
from domain.storage.backends import Backends
from domain.storage.directory import BackendDirectory, BackendStatus
from domain.storage.model import Backend, BackendServer
from tests.unit.fake_bulk import FakeBulk
from tests.unit.fake_keys import FakeKeys, FakeSessions
from tests.unit.fake_projects import FakeProjects
from tests.unit.fake_snapshots import FakeSnapshots
from tests.unit.fake_volumes import NOON, FakeJobs, FakeVolumeNames, FakeVolumes, job_row, snapshot_row, volume_row

__all__ = ["NOON", "FakeServices", "job_row", "snapshot_row", "volume_row"]


@dataclass
class FakeWatcher:
    """Ends a job as soon as a request waits for it, and records the waits."""

    jobs: FakeJobs
    jobs_end: bool = True
    final_status: JobStatus = JobStatus.SUCCEEDED
    database_is_up: bool = True
    waits: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        yield

    def release(self) -> None:
        """Do nothing: no request ever waits."""

    async def follow(
        self, job_id: UUID, version: int | None, *, end: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[Job, None]:
        """Yield the job if its version is new, and then the ended job."""
        job = self.jobs.rows[job_id]
        if job.version != version:
            yield job
        if not job.ended:
            await self.ended(job_id, 0)
            yield job

    async def ended(self, job_id: UUID, seconds: float) -> None:
        self.waits.append(seconds)
        if not self.database_is_up:
            raise DatabaseUnavailable
        if self.jobs_end:
            job = self.jobs.rows[job_id]
            job.status, job.finished_at, job.version = self.final_status, NOON, job.version + 1


@dataclass
class FakeServer:
    """PostgreSQL or Redis: `ping` fails while it is down."""

    error: type[Exception]
    up: bool = True

    async def ping(self, _backends: object = ()) -> None:
        if not self.up:
            raise self.error


@dataclass
class FakeStats:
    """Statistics; None means that they are unavailable."""

    stats: Stats | None = field(
        default_factory=lambda: Stats(2, 1.5, {"rescued": 1, "retried": 3, "lost_messages": 4}),
    )

    async def latest(self) -> Stats | None:
        return self.stats


class FakeDirectory(BackendDirectory):
    """Backends that one worker serves."""

    def __init__(self, *names: str) -> None:
        self._backends = {name: self.status(name) for name in names}

    def status(self, name: str, problem: str | None = None) -> BackendStatus:
        row = Backend(name=name, driver=name, position=0, total=10 * 2**30, used=2**20, free=10 * 2**30 - 2**20)
        row.measured_at = row.served_since = NOON
        server = BackendServer(backend=name, worker_id=UUID(int=7), host="worker-1", problem=problem, since=NOON)
        return BackendStatus(row, [server])

    def fail(self, name: str, problem: str) -> None:
        self._backends = {**self._backends, name: self.status(name, problem)}

    async def refresh(self) -> None:
        """Do nothing: nothing changes."""


@dataclass
class FakeWorkers:
    """One worker, which runs the jobs that are running."""

    jobs: FakeJobs
    alive: int = 1

    async def count_alive(self) -> int:
        return self.alive

    async def all(self, project_id: UUID | None = None) -> list[WorkerStatus]:
        row = Worker(id=UUID(int=7), host="worker-1", pid=42, slots=10, started_at=NOON, heartbeat_at=NOON)
        jobs = [one for one in self.jobs.rows.values() if one.status is JobStatus.RUNNING]
        return [WorkerStatus(row, is_alive=True, jobs=[one for one in jobs if project_id in (None, one.project_id)])]


class FakeServices:
    """All services of the API."""

    def __init__(self) -> None:
        self.settings = Settings.model_construct(hosts=("cistern.example.org",))
        self.backends = Backends.open({"memory": "memory:?capacity=10GiB", "null": "null:"}, threads=1)
        self.directory = FakeDirectory("memory", "null")
        self.keys = FakeKeys()
        self.sessions = FakeSessions(self.keys)
        self.projects = FakeProjects()
        self.jobs = FakeJobs()
        self.volumes = FakeVolumes(self.jobs, self.backends)
        self.volume_names = FakeVolumeNames(self.volumes)
        self.snapshots = FakeSnapshots(self.jobs, self.volumes)
        self.bulk = FakeBulk(self.jobs, self.volumes)
        self.watcher = FakeWatcher(self.jobs)
        self.stats = FakeStats()
        self.workers = FakeWorkers(self.jobs)
        self.database = FakeServer(DatabaseUnavailable)
        self.queue = FakeServer(QueueUnavailable)

    def factory(self) -> ServicesFactory:
        """Return a factory of these services for `create_app`."""

        return lambda: nullcontext(cast("Services", self))
