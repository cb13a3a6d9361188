"""The composition root: builds the services, the table of job kinds and the table of scheduled actions."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.access.service import KeyService, may_own_schedules
from domain.access.sessions import SessionService
from domain.attachment_handlers import attachment_handlers
from domain.audit.service import AuditLog
from domain.bulk.expansion import ExpandOperation
from domain.bulk.ledger import clear_ledgers
from domain.bulk.operation import BulkOperation
from domain.bulk.scheduled import ScheduledBulk
from domain.bulk.service import BulkService
from domain.bulk.snapshot import SnapshotOperation
from domain.check.attachments import HostView
from domain.check.service import Check
from domain.db.database import Database
from domain.fence_retention import FenceRetention
from domain.jobs.attempt import RetryPolicy
from domain.jobs.engine import JobEngine
from domain.jobs.kinds import JobHandler, JobHandlers, JobKind
from domain.jobs.many_jobs import ManyJobs
from domain.jobs.model import Worker
from domain.jobs.overview import OverviewService
from domain.jobs.service import JobService
from domain.jobs.stats import StatsCache
from domain.jobs.store.dispatch import any_dispatched_before, any_undispatched, any_unserved
from domain.jobs.store.orphans import any_orphans_or_dead_workers
from domain.jobs.store.parents import any_without_lanes
from domain.jobs.store.retention import Retention
from domain.jobs.transport.job_queue import JobQueue, QueueKeys
from domain.jobs.watcher import Watcher
from domain.jobs.webhooks.handler import DeliveryHandler
from domain.jobs.webhooks.sender import Sender
from domain.jobs.webhooks.service import WebhookService
from domain.jobs.workers import WorkerDirectory
from domain.maintenance_tasks import MaintenanceTask, MaintenanceTasks
from domain.operation_handler import OperationHandler
from domain.operations import OPERATIONS
from domain.projects.service import ProjectService
from domain.pruning import others_pruned
from domain.schedules.actions import Actions
from domain.schedules.repository import any_due
from domain.schedules.runner import ScheduleRunner
from domain.schedules.service import ScheduleService
from domain.settings import Settings, require_database, require_servers
from domain.snapshots.repository import refuse_if_it_has_snapshots
from domain.snapshots.service import SnapshotService
from domain.storage.backends import Backends
from domain.storage.directory import BackendDirectory
from domain.storage.registry import SAMPLE, BackendRegistry
from domain.telemetry import exporting
from domain.volumes.attachments.freezing import Freezer
from domain.volumes.attachments.service import AttachmentService
from domain.volumes.history.service import VolumeHistory
from domain.volumes.names import VolumeNames
from domain.volumes.repository import VolumeRepository
from domain.volumes.service import VolumeService

_BULK_SETTINGS: Final = {"max_attempts", "max_concurrent", "busy_seconds"}


def handlers(
    settings: Settings, database: Database, backends: Backends, bulk: BulkService, freezer: Freezer
) -> dict[str, JobHandler]:
    """Return the handler of each job kind. A worker adds that of lanes, which it performs itself."""
    attempts = settings.max_attempts
    return {
        **{
            kind: OperationHandler(one, backends, max_attempts=attempts, freezer=freezer)
            for kind, one in OPERATIONS.items()
        },
        **attachment_handlers(database, backends, max_attempts=attempts, freezer=freezer),
        JobKind.BULK_EXPAND: bulk,
        JobKind.BULK_SNAPSHOT: bulk,
        JobKind.WEBHOOK_DELIVER: DeliveryHandler(database, Sender(settings.webhook_hosts)),
    }


@dataclass(frozen=True)
class Services:
    """The services of one process (API, worker or command line), open for as long as it runs."""

    settings: Settings
    database: Database
    queue: JobQueue
    backends: Backends
    registry: BackendRegistry
    directory: BackendDirectory
    keys: KeyService
    sessions: SessionService
    projects: ProjectService
    audit: AuditLog
    webhooks: WebhookService
    overview: OverviewService
    volumes: VolumeService
    volume_history: VolumeHistory
    attachments: AttachmentService
    snapshots: SnapshotService
    bulk: BulkService
    actions: Actions
    schedules: ScheduleService
    schedule_runner: ScheduleRunner
    jobs: JobService
    handlers: JobHandlers
    retry_policy: RetryPolicy
    watcher: Watcher
    workers: WorkerDirectory
    stats: StatsCache
    retention: Retention
    fence_retention: FenceRetention

    @property
    def many_jobs(self) -> ManyJobs:
        """What changes all jobs that match."""
        return ManyJobs(self.database, self.jobs)

    @property
    def volume_names(self) -> VolumeNames:
        """The names of volumes, for lists."""
        return VolumeNames(self.database)

    @property
    def freezer(self) -> Freezer:
        """What asks nodes to freeze file systems."""
        return Freezer(self.database, self.queue, lease=self.settings.lease_seconds)

    def engine(
        self, worker: Worker, job_handlers: JobHandlers, served: Callable[[], Collection[str]] | None = None
    ) -> JobEngine:
        """Return the job engine of one worker process, which claims the jobs that it has handlers for.

        ``served`` returns whose jobs it can do; None means those of the backends that it can use.
        """
        return JobEngine(
            self.database,
            self.queue,
            job_handlers,
            worker=worker,
            served=served or self.backends.served,
            lease=self.settings.lease_seconds,
            min_heartbeat_timeout=self.settings.heartbeat_timeout_seconds,
        )

    def maintenance_tasks(self, engine: JobEngine) -> MaintenanceTasks:
        """Return the maintenance tasks. Those that dispatch come last: the others leave jobs to be dispatched."""
        jobs, kinds = engine.maintenance, engine.maintenance.kinds
        orphans, without_lanes = any_orphans_or_dead_workers(), any_without_lanes()
        old = any_dispatched_before(jobs.redispatch_after, kinds)
        unserved = any_unserved(self.settings.lease_seconds)
        return MaintenanceTasks(
            self.database,
            (
                MaintenanceTask("jobs.rescued", jobs.rescue, orphans, requires_heartbeat=True),
                MaintenanceTask("bulk.lanes_assigned", self.bulk.assign_lanes, without_lanes, requires_heartbeat=True),
                MaintenanceTask("schedules.started", self.schedule_runner.start_due, any_due(self.actions)),
                MaintenanceTask("jobs.waiting", jobs.explain_waiting, unserved),
                MaintenanceTask("messages.dispatched", jobs.dispatch_due, any_undispatched(kinds)),
                MaintenanceTask("messages.redispatched", jobs.redispatch_lost, old),
            ),
        )

    def check(self, host: HostView | None = None) -> Check:
        """Return the check that compares rows, ledgers and storage, and with them ``host``: this one, if a node."""
        return Check(self.database, self.backends, self.handlers, lease=self.settings.lease_seconds, host=host)


@asynccontextmanager
async def open_services(settings: Settings, *, adopt: bool = False) -> AsyncIterator[Services]:
    """Open the connections and backends of the services, and close them on exit.

    A worker passes ``adopt``: it looks at its backends at once, and gives an identity to places that have none.

    Raises:
        ConfigurationError: a setting is missing or invalid, or the database is not migrated.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    service = "cistern-worker" if adopt else "cistern-api"
    require_servers(settings)
    async with exporting(settings.traces, service), _open(settings, adopt=adopt) as services:
        yield services


def open_backends(settings: Settings) -> Backends:
    """Open the backends, and check the URL of Redis if there is one; connect to nothing and create nothing.

    Raises:
        ConfigurationError: a URL is invalid for redis-py or a driver.
    """
    if settings.redis_url:
        JobQueue.open(settings.redis_url)
    return Backends.open(settings.backends, threads=settings.max_jobs + settings.max_concurrent)


async def read_queue_keys(settings: Settings) -> QueueKeys:
    """Read the names of this installation in Redis.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    open_backends(settings)
    async with _open_database(settings) as database:
        return QueueKeys.of(await database.installation())


@asynccontextmanager
async def open_check(settings: Settings, host: HostView | None = None) -> AsyncIterator[Check]:
    """Open the check, which needs PostgreSQL and the backends but no Redis. ``host`` is this one, if it is a node.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    require_database(settings)
    # The queue connects on first use, and the check never uses it: any URL will do.
    async with _open(
        settings.model_copy(update={"redis_url": settings.redis_url or "redis://"}), adopt=False
    ) as services:
        await services.registry.look()
        yield services.check(host)


class Access(NamedTuple):
    """The services that manage who may do what."""

    keys: KeyService
    projects: ProjectService


@asynccontextmanager
async def open_access(settings: Settings) -> AsyncIterator[Access]:
    """Open the services of keys and projects, which need PostgreSQL only.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    require_database(settings)
    async with _open_database(settings) as database:
        yield Access(KeyService(database), ProjectService(database))


@asynccontextmanager
async def _open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open a migrated database alone, for a command."""
    database = Database(settings.database_url, pool_size=1, timeout=settings.database_timeout_seconds)
    try:
        await database.require_migrated()
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _open(settings: Settings, *, adopt: bool) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        # docs/operations.md has the resulting maximum.
        pool_size, timeout = settings.max_jobs + 4, settings.database_timeout_seconds
        database = Database(settings.database_url, pool_size=pool_size, timeout=timeout)
        stack.push_async_callback(database.close)
        backends = open_backends(settings)
        stack.push_async_callback(backends.close)
        await database.require_migrated()
        installation = await database.installation()
        queue = JobQueue.open(settings.redis_url, QueueKeys.of(installation))
        stack.push_async_callback(queue.close)
        services = compose(settings, database, queue, backends, installation)
        if adopt or "backends" in settings.model_fields_set:  # another process may not have the default backend
            await services.registry.register()
        if adopt:
            await services.registry.look(adopt=True)
        await services.directory.refresh()
        yield services


def compose(
    settings: Settings, database: Database, queue: JobQueue, backends: Backends, installation: UUID
) -> Services:
    """Build the services on an open database, queue and backends."""
    attempts, lease = settings.max_attempts, settings.lease_seconds
    directory, freezer = BackendDirectory(database), Freezer(database, queue, lease=lease)
    snapshots = SnapshotService(database, queue, directory, max_attempts=attempts)
    operations = _bulk_operations(database, backends, snapshots, freezer)
    bulk = _bulk(settings, database, queue, operations)
    job_handlers = handlers(settings, database, backends, bulk, freezer)
    actions: Actions = {kind: ScheduledBulk(bulk, one.request_type, directory) for kind, one in operations.items()}
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        backends=backends,
        registry=BackendRegistry(database, backends, installation, _sample_volumes),
        directory=directory,
        keys=KeyService(database),
        sessions=SessionService(database),
        projects=ProjectService(database),
        audit=AuditLog(database),
        webhooks=WebhookService(database, queue, hosts=settings.webhook_hosts),
        overview=OverviewService(database, lease=lease),
        volumes=_volumes(settings, database, queue, directory),
        volume_history=VolumeHistory(database),
        attachments=AttachmentService(database, queue, max_attempts=attempts, lease=lease),
        snapshots=snapshots,
        bulk=bulk,
        actions=actions,
        schedules=ScheduleService(database, actions),
        schedule_runner=ScheduleRunner(database, queue, actions, may_own=may_own_schedules),
        jobs=JobService(database, queue, job_handlers),
        handlers=job_handlers,
        retry_policy=RetryPolicy(settings.retry_seconds),
        watcher=Watcher(database, queue),
        workers=WorkerDirectory(database, lease=lease),
        stats=StatsCache(database),
        retention=_retention(settings, database),
        fence_retention=FenceRetention(database, backends, days=settings.keep_jobs_days),
    )


def _volumes(settings: Settings, database: Database, queue: JobQueue, directory: BackendDirectory) -> VolumeService:
    attempts = settings.max_attempts
    return VolumeService(database, queue, directory, max_attempts=attempts, refuse_delete=refuse_if_it_has_snapshots)


def _bulk(
    settings: Settings, database: Database, queue: JobQueue, operations: Mapping[str, BulkOperation]
) -> BulkService:
    limits = settings.model_dump(include={"max_attempts", "max_concurrent", "busy_seconds"})
    return BulkService(database, queue, operations, **limits)


def _bulk_operations(
    database: Database, backends: Backends, snapshots: SnapshotService, freezer: Freezer
) -> Mapping[str, BulkOperation]:
    return {
        JobKind.BULK_EXPAND: ExpandOperation(database, backends),
        JobKind.BULK_SNAPSHOT: SnapshotOperation(backends, snapshots, freezer),
    }


def _retention(settings: Settings, database: Database) -> Retention:
    days = settings.keep_jobs_days
    others = others_pruned(jobs_days=days, history_days=settings.keep_history_days, audit_days=settings.keep_audit_days)
    return Retention(database, clear_ledgers, days=days, others=others)


async def _sample_volumes(session: AsyncSession, backend: str) -> Sequence[UUID]:
    return await VolumeRepository(session).sample(backend, SAMPLE)
