"""The composition root: what stands on what, and the tables of what jobs do and what schedules ask for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from domain.bulk.chunks import Chunks
from domain.bulk.kinds import EXPAND, LANE, SNAPSHOT
from domain.bulk.ledger import clear_ledgers
from domain.bulk.operation import Operation
from domain.bulk.scheduled import ScheduledBulk
from domain.bulk.service import BulkService
from domain.database import Database
from domain.errands import Errand, Errands
from domain.expansion.growing import Growing
from domain.expansion.policy import BulkExpansion
from domain.expansion.service import ExpansionService
from domain.inspection.service import Inspection
from domain.jobs.foreman import Foreman
from domain.jobs.kinds import Abandon, Again, Record
from domain.jobs.model import Worker
from domain.jobs.orders import WorkOrder
from domain.jobs.orphans import any_neglected
from domain.jobs.outcomes import Outcome, Payload
from domain.jobs.parents import any_forsaken
from domain.jobs.queue import JobQueue
from domain.jobs.retention import Retention
from domain.jobs.retry import RetryPolicy
from domain.jobs.rings import any_rung_before, any_unrung
from domain.jobs.service import JobService
from domain.jobs.signals import Signposts
from domain.jobs.watcher import Watcher
from domain.schedules.actions import Action
from domain.schedules.repository import any_due, prune_runs
from domain.schedules.service import ScheduleService
from domain.schedules.starter import Starter
from domain.settings import Settings, require_database, require_servers
from domain.snapshots.bulk import BulkSnapshotService
from domain.snapshots.policy import BulkSnapshot
from domain.snapshots.repository import refuse_if_it_has_snapshots
from domain.snapshots.service import SnapshotService
from domain.snapshots.snapshotting import Snapshotting
from domain.storage.backends import Backends
from domain.storage.driver import Grant
from domain.volumes.service import VolumeService


@dataclass(frozen=True)
class Handler:
    """Everything about one kind of job: asking again, the work, its effect, and the way out."""

    again: Again
    do: Callable[[WorkOrder, Grant], Awaitable[Outcome]]
    record: Record
    seal: Callable[[WorkOrder, Grant], Awaitable[Payload | None]]
    abandon: Abandon


def handlers(
    volumes: VolumeService,
    snapshots: SnapshotService,
    bulk: BulkService,
    expansion: ExpansionService,
    bulk_snapshots: BulkSnapshotService,
) -> dict[str, Handler]:
    """Draw up the table; the work of a lane is put in by the worker whose it is."""
    v, s, b, e, bs = volumes, snapshots, bulk, expansion, bulk_snapshots
    return {
        "volume.create": Handler(v.again_create, v.create, v.record_create, v.seal, v.abandon_create),
        "volume.expand": Handler(v.again_expand, v.expand, v.record_expand, v.seal, v.abandon_expand),
        "volume.delete": Handler(v.again_delete, v.delete, v.record_delete, v.seal, v.abandon_delete),
        "snapshot.take": Handler(s.again_take, s.take, s.record_take, s.seal_snapshot, s.abandon_take),
        "snapshot.restore": Handler(s.again_restore, s.restore, s.record_restore, s.seal_volume, s.abandon_restore),
        "snapshot.delete": Handler(s.again_delete, s.delete, s.record_delete, s.seal_snapshot, s.abandon_delete),
        "snapshot.clone": Handler(s.again_clone, s.clone, s.record_clone, s.seal_volume, s.abandon_clone),
        EXPAND: Handler(e.again_expand, b.plan, b.hand_over, _nothing, b.abandon),
        SNAPSHOT: Handler(bs.again_snapshots, b.plan, b.hand_over, _nothing, b.abandon),
        LANE: Handler(b.again_lane, _in_a_workshop, b.record_lane, _nothing, b.abandon_lane),
    }


def actions(expansion: ExpansionService, snapshots: BulkSnapshotService, backends: Backends) -> dict[str, Action]:
    """Draw up the table of what a schedule may ask for."""
    return {
        EXPAND: ScheduledBulk(expansion, BulkExpansion.wished, backends),
        SNAPSHOT: ScheduledBulk(snapshots, BulkSnapshot.wished, backends),
    }


async def _nothing(_: WorkOrder, __: Grant) -> None:
    """There is nothing on the storage that an earlier attempt of the whole could still change."""


async def _in_a_workshop(job: WorkOrder, _: Grant) -> Outcome:
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
    expansion: ExpansionService
    bulk_snapshots: BulkSnapshotService
    chunks: Chunks
    actions: dict[str, Action]
    schedules: ScheduleService
    starter: Starter
    jobs: JobService
    handlers: dict[str, Handler]
    retry_policy: RetryPolicy
    watcher: Watcher
    signals: Signposts
    retention: Retention

    def foreman(self, worker: Worker) -> Foreman:
        """Give one worker process its view of the job book."""
        return Foreman(self.database, self.queue, self.handlers, worker=worker, lease=self.settings.lease_seconds)

    def errands(self, foreman: Foreman) -> Errands:
        """Draw up what a worker does for all; those that ring come last, for the others leave something to be rung."""
        return Errands(
            self.database,
            (
                Errand("jobs.rescued", foreman.rescue, any_neglected(), only_while_beating=True),
                Errand("bulks.tended", self.bulk.tend, any_forsaken(), only_while_beating=True),
                Errand("schedules.started", self.starter.start_due, any_due(self.actions)),
                Errand("rings.due", foreman.ring_due, any_unrung(self.handlers)),
                Errand("rings.found_lost", foreman.ring_lost, any_rung_before(foreman.ring_patience, self.handlers)),
            ),
        )

    def inspection(self) -> Inspection:
        """Give somebody who wants to know whether rows, ledger and disk agree a look at all of them."""
        return Inspection(self.database, self.backends, self.handlers, lease=self.settings.lease_seconds)


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
async def open_inspection(settings: Settings) -> AsyncIterator[Inspection]:
    """Open what an inspection needs, which is PostgreSQL and the backends.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_services`.
    """
    require_database(settings)
    # Whoever opens a queue connects on first use, and an inspection has none: any address will do.
    async with _opened(settings.model_copy(update={"redis_url": settings.redis_url or "redis://"})) as services:
        yield services.inspection()


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
    expansion = ExpansionService(
        database, queue, max_attempts=settings.max_attempts, max_concurrent=settings.max_concurrent
    )
    bulk_snapshots = BulkSnapshotService(
        database, queue, max_attempts=settings.max_attempts, max_concurrent=settings.max_concurrent
    )
    operations: dict[str, Operation] = {
        EXPAND: Growing(database, backends),
        SNAPSHOT: Snapshotting(backends, snapshots),
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
        chunks=Chunks(database, queue, operations, patience=settings.busy_seconds),
        actions=schedulable,
        schedules=ScheduleService(database, schedulable),
        starter=Starter(database, queue, schedulable),
        jobs=JobService(database, queue, table),
        handlers=table,
        retry_policy=RetryPolicy(settings.retry_seconds),
        watcher=Watcher(database, queue),
        signals=Signposts(database),
        retention=Retention(database, clear_ledgers, days=settings.keep_jobs_days, others=[prune_runs]),
    )
