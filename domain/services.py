"""The composition root: what stands on what, and the tables of what jobs do and what schedules ask for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from domain.bulk.chunks import Chunks
from domain.bulk.expand.operation import ExpandOperation
from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.expand.service import BulkExpandService
from domain.bulk.kinds import EXPAND, LANE, SNAPSHOT
from domain.bulk.ledger import clear_ledgers
from domain.bulk.operation import BulkOperation
from domain.bulk.scheduled import ScheduledBulk
from domain.bulk.service import BulkService
from domain.bulk.snapshot.operation import SnapshotOperation
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.bulk.snapshot.service import BulkSnapshotService
from domain.check.service import Check
from domain.db.database import Database
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import JobEngine
from domain.jobs.kinds import Abandon, Record, Retry
from domain.jobs.model import Worker
from domain.jobs.outcomes import Outcome, Payload
from domain.jobs.retry import RetryPolicy
from domain.jobs.service import JobService
from domain.jobs.stats import StatsCache
from domain.jobs.store.dispatch import any_dispatched_before, any_undispatched
from domain.jobs.store.orphans import any_orphans_or_dead_workers
from domain.jobs.store.parents import any_without_lanes
from domain.jobs.store.retention import Retention
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.watcher import Watcher
from domain.maintenance_tasks import MaintenanceTask, MaintenanceTasks
from domain.schedules.actions import Action
from domain.schedules.repository import any_due, prune_runs
from domain.schedules.runner import ScheduleRunner
from domain.schedules.service import ScheduleService
from domain.settings import Settings, require_database, require_servers
from domain.snapshots.repository import refuse_if_it_has_snapshots
from domain.snapshots.service import SnapshotService
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.volumes.service import VolumeService


@dataclass(frozen=True)
class Handler:
    """Everything about one kind of job: asking again, the work, its effect, and the way out."""

    retry: Retry
    perform: Callable[[ClaimedJob, Grant], Awaitable[Outcome]]
    record: Record
    seal: Callable[[ClaimedJob, Grant], Awaitable[Payload | None]]
    abandon: Abandon


def handlers(
    volumes: VolumeService,
    snapshots: SnapshotService,
    bulk: BulkService,
    expansion: BulkExpandService,
    bulk_snapshots: BulkSnapshotService,
) -> dict[str, Handler]:
    """Draw up the table; the work of a lane is put in by the worker whose it is."""
    v, s, b, e, bs = volumes, snapshots, bulk, expansion, bulk_snapshots
    return {
        "volume.create": Handler(v.retry_create, v.create, v.record_create, v.seal, v.abandon_create),
        "volume.expand": Handler(v.retry_expand, v.expand, v.record_expand, v.seal, v.abandon_expand),
        "volume.delete": Handler(v.retry_delete, v.delete, v.record_delete, v.seal, v.abandon_delete),
        "snapshot.take": Handler(s.retry_take, s.take, s.record_take, s.seal_snapshot, s.abandon_take),
        "snapshot.restore": Handler(s.retry_restore, s.restore, s.record_restore, s.seal_volume, s.abandon_restore),
        "snapshot.delete": Handler(s.retry_delete, s.delete, s.record_delete, s.seal_snapshot, s.abandon_delete),
        "snapshot.clone": Handler(s.retry_clone, s.clone, s.record_clone, s.seal_volume, s.abandon_clone),
        EXPAND: Handler(e.retry_expand, b.plan, b.hand_over, _nothing, b.abandon),
        SNAPSHOT: Handler(bs.retry_snapshots, b.plan, b.hand_over, _nothing, b.abandon),
        LANE: Handler(b.retry_lane, _in_a_workshop, b.record_lane, _nothing, b.abandon_lane),
    }


def actions(expansion: BulkExpandService, snapshots: BulkSnapshotService, backends: Backends) -> dict[str, Action]:
    """Draw up the table of what a schedule may ask for."""
    return {
        EXPAND: ScheduledBulk(expansion, BulkExpandRequest.from_request, backends),
        SNAPSHOT: ScheduledBulk(snapshots, BulkSnapshotRequest.from_request, backends),
    }


async def _nothing(_: ClaimedJob, __: Grant) -> None:
    """There is nothing on the storage that an earlier attempt of the whole could still change."""


async def _in_a_workshop(job: ClaimedJob, _: Grant) -> Outcome:
    raise NotImplementedError(f"{job.kind} is the worker's own work (worker/lanes.py)")


@dataclass(frozen=True)
class Services:
    """What an edge (HTTP, a worker, the command line) holds for as long as it runs."""

    settings: Settings
    database: Database
    queue: JobQueue
    backends: Backends
    volumes: VolumeService
    snapshots: SnapshotService
    bulk: BulkService
    expansion: BulkExpandService
    bulk_snapshots: BulkSnapshotService
    chunks: Chunks
    actions: dict[str, Action]
    schedules: ScheduleService
    schedule_runner: ScheduleRunner
    jobs: JobService
    handlers: dict[str, Handler]
    retry_policy: RetryPolicy
    watcher: Watcher
    stats: StatsCache
    retention: Retention

    def engine(self, worker: Worker) -> JobEngine:
        """Give one worker process its view of the job book."""
        return JobEngine(
            self.database,
            self.queue,
            self.handlers,
            worker=worker,
            lease=self.settings.lease_seconds,
            min_heartbeat_timeout=self.settings.heartbeat_timeout_seconds,
        )

    def maintenance_tasks(self, engine: JobEngine) -> MaintenanceTasks:
        """Draw up what a worker does for all; those that ring come last, for the others leave something to be rung."""
        return MaintenanceTasks(
            self.database,
            (
                MaintenanceTask("jobs.rescued", engine.rescue, any_orphans_or_dead_workers(), requires_heartbeat=True),
                MaintenanceTask(
                    "bulk.lanes_assigned", self.bulk.assign_lanes, any_without_lanes(), requires_heartbeat=True
                ),
                MaintenanceTask("schedules.started", self.schedule_runner.start_due, any_due(self.actions)),
                MaintenanceTask("messages.dispatched", engine.dispatch_due, any_undispatched(self.handlers)),
                MaintenanceTask(
                    "messages.redispatched",
                    engine.redispatch_lost,
                    any_dispatched_before(engine.redispatch_after, self.handlers),
                ),
            ),
        )

    def check(self) -> Check:
        """Give somebody who wants to know whether rows, ledger and disk agree a look at all of them."""
        return Check(self.database, self.backends, self.handlers, lease=self.settings.lease_seconds)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open connections and backends, and close them in the end.

    Raises:
        ConfigurationError: a setting is missing or unusable, or the database is not migrated.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    async with _opened(require_servers(settings)) as services:
        yield services


@asynccontextmanager
async def open_check(settings: Settings) -> AsyncIterator[Check]:
    """Open what an inspection needs, which is PostgreSQL and the backends.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    require_database(settings)
    # Whoever opens a queue connects on first use, and an inspection has none: any address will do.
    async with _opened(settings.model_copy(update={"redis_url": settings.redis_url or "redis://"})) as services:
        yield services.check()


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        backends = Backends.open(settings.backends, threads=settings.max_jobs + settings.max_concurrent)
        stack.push_async_callback(backends.close)
        database = Database(settings.database_url, pool_size=settings.max_jobs + 5)
        stack.push_async_callback(database.close)
        queue = JobQueue.open(settings.redis_url)
        stack.push_async_callback(queue.close)
        await database.require_migrated()
        yield compose(settings, database, queue, backends)


def compose(settings: Settings, database: Database, queue: JobQueue, backends: Backends) -> Services:
    """Build the services on their parts."""
    volumes = VolumeService(
        database, queue, backends, max_attempts=settings.max_attempts, refuse_delete=refuse_if_it_has_snapshots
    )
    snapshots = SnapshotService(database, queue, backends, max_attempts=settings.max_attempts)
    expansion = BulkExpandService(
        database, queue, max_attempts=settings.max_attempts, max_concurrent=settings.max_concurrent
    )
    bulk_snapshots = BulkSnapshotService(
        database, queue, max_attempts=settings.max_attempts, max_concurrent=settings.max_concurrent
    )
    operations: dict[str, BulkOperation] = {
        EXPAND: ExpandOperation(database, backends),
        SNAPSHOT: SnapshotOperation(backends, snapshots),
    }
    bulk = BulkService(database, queue, operations)
    table = handlers(volumes, snapshots, bulk, expansion, bulk_snapshots)
    schedulable = actions(expansion, bulk_snapshots, backends)
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        backends=backends,
        volumes=volumes,
        snapshots=snapshots,
        bulk=bulk,
        expansion=expansion,
        bulk_snapshots=bulk_snapshots,
        chunks=Chunks(database, queue, operations, busy_seconds=settings.busy_seconds),
        actions=schedulable,
        schedules=ScheduleService(database, schedulable),
        schedule_runner=ScheduleRunner(database, queue, schedulable),
        jobs=JobService(database, queue, table),
        handlers=table,
        retry_policy=RetryPolicy(settings.retry_seconds),
        watcher=Watcher(database, queue),
        stats=StatsCache(database),
        retention=Retention(database, clear_ledgers, days=settings.keep_jobs_days, others=[prune_runs]),
    )
