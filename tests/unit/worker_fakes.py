"""Stand-ins for a worker's servers: a job engine, a Redis and storage, all in memory."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from arq.connections import ArqRedis
from fakeredis import FakeAsyncRedisConnection, FakeServer
from redis.asyncio.connection import ConnectionPool

from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Outcome, RetryPolicy, Superseded
from domain.jobs.engine import NO_PROGRESS, Claim, JobEngine, Renewed
from domain.jobs.kinds import JobHandlers
from domain.jobs.model import Job, JobMessage, new_job
from domain.jobs.states import JobStatus
from domain.jobs.store.leases import Progress, Renewal
from domain.jobs.transport.job_queue import JobQueue, QueueKeys
from domain.services import compose
from domain.settings import Settings
from domain.storage.backends import Backends, open_driver
from domain.storage.context import Grant, StallLimits
from domain.storage.driver import StorageDriver
from domain.storage.memory import MemoryDriver
from worker.performer import AttemptPerformer
from worker.runner import Runner

MIB = 2**20
#: Where the messages of `a_job` are.
QUEUE_NAME, WAKEUPS = QueueKeys().queue("memory"), QueueKeys().wakeups("memory")
LEASE = 60.0
STALL = StallLimits(60, 600)


class FakeJobEngine(JobEngine):
    """A job engine on a dict: claims and settles by the rules of the real one, and records its calls."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.settled: list[Outcome] = []
        self.claims: list[JobMessage] = []
        self.cancelled: set[UUID] = set()
        self.failing_calls = 0  # how many of the next calls find PostgreSQL unavailable
        self.maintenance_calls: list[str] = []
        self.outages_noted = 0
        self.lease = LEASE
        self.queue_ms = 0
        self.progress: dict[UUID, Progress] = {}

    def served(self) -> Collection[str]:
        return ["memory"]

    async def claim(self, message: JobMessage) -> Claim | None:
        self._connect()
        self.claims.append(message)
        if not self._is_claimable(message):
            return None
        job = self.jobs[message.job_id]
        job.status = JobStatus.RUNNING
        job.attempt += 1
        claimed = ClaimedJob.from_row(job)._replace(queue_ms=self.queue_ms)
        return Claim(claimed, time.monotonic() + self.lease)

    def submit_claim(self, message: JobMessage) -> "asyncio.Future[Claim | None]":
        """Find nothing if `claim` does, which is called next."""
        if self._is_claimable(message):
            return asyncio.ensure_future(self.claim(message))
        nothing: asyncio.Future[Claim | None] = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    def _is_claimable(self, message: JobMessage) -> bool:
        job = self.jobs.get(message.job_id)
        return job is not None and job.epoch == message.epoch and job.status is JobStatus.QUEUED

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        self._connect()
        row = self.jobs[job.id]
        if isinstance(outcome, Superseded) or row.epoch != job.epoch or row.status is not JobStatus.RUNNING:
            return False
        self.settled.append(outcome)
        row.status = outcome.status
        if row.status is JobStatus.QUEUED:
            row.epoch += 1
        return True

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        self._connect()
        self.progress = dict(progress)
        held = [job_id for job_id in job_ids if job_id in self.jobs]
        renewals = [Renewal(job_id, job_id in self.cancelled) for job_id in held]
        return Renewed(renewals, frozenset(job_ids) - frozenset(held), time.monotonic() + self.lease)

    def note_outage(self) -> None:
        self.outages_noted += 1

    async def rescue(self) -> int:
        self.maintenance_calls.append("rescue")
        return 0

    async def dispatch_due(self) -> int:
        self.maintenance_calls.append("dispatch_due")
        return 0

    async def redispatch_lost(self) -> int:
        self.maintenance_calls.append("redispatch_lost")
        return 0

    def requeue(self, job_id: UUID) -> JobMessage:
        """Do what a rescue by another worker does."""
        row = self.jobs[job_id]
        row.status = JobStatus.QUEUED
        row.epoch += 1
        return row.message

    def _connect(self) -> None:
        if self.failing_calls:
            self.failing_calls -= 1
            raise DatabaseUnavailable


def a_job(kind: str = "volume.create", *, size: int = MIB, max_attempts: int = 3, **columns: object) -> Job:
    """Create a queued job on a new volume, in the backend ``memory``."""
    columns = {"volume_id": uuid4(), "backend": "memory"} | columns
    params = {"size": size, "to_size": size, "fence_version": 1}
    job = new_job(kind, params, max_attempts=max_attempts, project_id=DEFAULT_PROJECT)
    for name, value in columns.items():
        setattr(job, name, value)
    return job


def fake_redis(server: FakeServer | None = None) -> ArqRedis:
    pool = ConnectionPool(connection_class=FakeAsyncRedisConnection, server=server or FakeServer())
    return ArqRedis(pool)


def handlers_on(driver: StorageDriver) -> JobHandlers:
    """Return the real handlers of all kinds, on this driver; their database is never queried."""
    settings = Settings(max_attempts=3, _env_file=None)
    unreachable = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    backends = Backends({"memory": driver}, {"memory": "memory"})
    return compose(settings, unreachable, JobQueue(fake_redis()), backends, uuid4()).handlers


def a_runner(engine: JobEngine, driver: StorageDriver, *, slots: int = 10, queue: JobQueue | None = None) -> Runner:
    attempts = AttemptPerformer(handlers_on(driver), RetryPolicy(1.0))
    return Runner(engine, queue or JobQueue(fake_redis()), attempts, slots=slots)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition is true; fail after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def closed_gate(tmp_path: Path) -> Path:
    """Create a file that blocks the work of a faulty driver for as long as it exists."""
    gate = tmp_path / "gate"
    gate.touch()
    return gate


def faulty(options: str) -> StorageDriver:
    return open_driver(f"faulty+memory:?{options}", threads=1)


class UntouchableDriver(MemoryDriver):
    """Storage on which no volume may be created; it may be sealed."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        raise AssertionError("the storage was touched")


class BuggyDriver(MemoryDriver):
    """Storage with a bug in it."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        raise ValueError("a bug")


async def size_of(driver: StorageDriver, job: Job) -> int | None:
    assert job.volume_id is not None
    usage = (await driver.measure([job.volume_id])).get(job.volume_id)
    return usage.size if usage else None
