"""The composition root: builds the services, the table of job kinds and the table of scheduled actions."""

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
    """The functions of one job kind: request a retry, do the work, record its effect, seal and abandon."""

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
    """Return the handler of each job kind. The worker replaces ``perform`` of the lane, which it does itself."""
    v, s, b, e, bs = volumes, snapshots, bulk, expansion, bulk_snapshots
    return {
        "volume.create": Handler(v.retry_create, v.create, v.record_create, v.seal, v.abandon_create),
        "volume.expand": Handler(v.retry_expand, v.expand, v.record_expand, v.seal, v.abandon_expand),
        "volume.delete": Handler(v.retry_delete, v.delete, v.record_delete, v.seal, v.abandon_delete),
        "snapshot.take": Handler(s.retry_take, s.take, s.record_take, s.seal_snapshot, s.abandon_take),
        "snapshot.restore": Handler(s.retry_restore, s.restore, s.record_restore, s.seal_volume, s.abandon_restore),
        "snapshot.delete": Handler(s.retry_delete, s.delete, s.record_delete, s.seal_snapshot, s.abandon_delete),
        "snapshot.clone": Handler(s.retry_clone, s.clone, s.record_clone, s.seal_volume, s.abandon_clone),
        EXPAND: Handler(e.retry_expand, b.plan, b.delegate, _nothing_to_seal, b.abandon),
        SNAPSHOT: Handler(bs.retry_snapshots, b.plan, b.delegate, _nothing_to_seal, b.abandon),
        LANE: Handler(b.retry_lane, _in_worker_only, b.record_lane, _nothing_to_seal, b.abandon_lane),
    }


def actions(expansion: BulkExpandService, snapshots: BulkSnapshotService, backends: Backends) -> dict[str, Action]:
    """Return the actions that a schedule may start."""
    return {
        EXPAND: ScheduledBulk(expansion, BulkExpandRequest.from_request, backends),
        SNAPSHOT: ScheduledBulk(snapshots, BulkSnapshotRequest.from_request, backends),
    }


async def _nothing_to_seal(_: ClaimedJob, __: Grant) -> None:
    """Do nothing: an earlier attempt at a bulk job itself cannot change anything on the storage."""


async def _in_worker_only(job: ClaimedJob, _: Grant) -> Outcome:
    raise NotImplementedError(f"{job.kind} is performed by the worker itself (worker/lanes.py)")


@dataclass(frozen=True)
class Services:
    """The services of one process (API, worker or command line), open for as long as it runs."""

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
        """Return the job engine of one worker process."""
        return JobEngine(
            self.database,
            self.queue,
            self.handlers,
            worker=worker,
            lease=self.settings.lease_seconds,
            min_heartbeat_timeout=self.settings.heartbeat_timeout_seconds,
        )

    def maintenance_tasks(self, engine: JobEngine) -> MaintenanceTasks:
        """Return the maintenance tasks. Those that dispatch come last: the others leave jobs to be dispatched."""
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
        """Return the check that compares rows, ledgers and storage."""
        return Check(self.database, self.backends, self.handlers, lease=self.settings.lease_seconds)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the connections and backends of the services, and close them on exit.

    Raises:
        ConfigurationError: a setting is missing or invalid, or the database is not migrated.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    async with _open(require_servers(settings)) as services:
        yield services


@asynccontextmanager
async def open_check(settings: Settings) -> AsyncIterator[Check]:
    """Open the check, which needs PostgreSQL and the backends but no Redis.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    require_database(settings)
    # The queue connects on first use, and the check never uses it: any URL will do.
    async with _open(settings.model_copy(update={"redis_url": settings.redis_url or "redis://"})) as services:
        yield services.check()


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Services]:
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
    """Build the services on an open database, queue and backends."""
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
    job_handlers = handlers(volumes, snapshots, bulk, expansion, bulk_snapshots)
    scheduled_actions = actions(expansion, bulk_snapshots, backends)
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
        actions=scheduled_actions,
        schedules=ScheduleService(database, scheduled_actions),
        schedule_runner=ScheduleRunner(database, queue, scheduled_actions),
        jobs=JobService(database, queue, job_handlers),
        handlers=job_handlers,
        retry_policy=RetryPolicy(settings.retry_seconds),
        watcher=Watcher(database, queue),
        stats=StatsCache(database),
        retention=Retention(database, clear_ledgers, days=settings.keep_jobs_days, others=[prune_runs]),
    )
