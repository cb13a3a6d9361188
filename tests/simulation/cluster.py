"""The simulated cluster: workers, database and storage, and the check of the invariants after each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.attempt import Cancelled, Failed, Outcome, RetryPolicy, Succeeded
from domain.jobs.engine import JobEngine
from domain.operations import SnapshotState, VolumeState
from domain.services import Services, compose
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.storage.backends import Backends
from domain.storage.context import StallLimits
from domain.storage.intermediate import intermediate_of
from domain.volumes.model import Volume
from tests.integration.job_builders import an_engine
from tests.simulation import invariants
from tests.simulation.doubles import (
    FaultyDatabase,
    JournalingMemoryDriver,
    Publication,
    SimulatedQueue,
    SteppedStorage,
    recording_outcomes,
    without_request_batching,
)
from tests.simulation.scheduler import SteppedTask
from tests.simulation.world_state import WorldState
from worker.heartbeat import Heartbeat
from worker.main import worker_handlers
from worker.performer import AttemptPerformer
from worker.runner import Runner

MIB: Final = 2**20
WORKERS: Final = 3
#: So long that a lease ends only when the simulation ends it.
LEASE_SECONDS: Final = 86_400.0
#: So long that a retry is due only when the simulation lets time pass.
RETRY_SECONDS: Final = 1000.0
_EMPTY: Final = text("TRUNCATE jobs, job_items, volumes, snapshots, attachments, mounts, workers")


@dataclass
class SimulatedWorker:
    """One worker process."""

    engine: JobEngine
    runner: Runner
    heartbeat: Heartbeat
    stepped_tasks: list[SteppedTask] = field(default_factory=list)

    def active_tasks(self) -> list[SteppedTask]:
        self.stepped_tasks = [stepped for stepped in self.stepped_tasks if not stepped.ended]
        return self.stepped_tasks


class Cluster:
    """All parts of the simulation, and the last observed state."""

    now: WorldState

    def __init__(self, database: FaultyDatabase, observer: AsyncConnection, settings: Settings) -> None:
        self.database = database
        self.observer = observer
        self.driver = JournalingMemoryDriver()
        self.queue = SimulatedQueue()
        backends = Backends({"memory": SteppedStorage.around(self.driver)}, {"memory": "memory"})
        self.services: Services = without_request_batching(compose(settings, database, self.queue, backends, uuid7()))
        self.workers: list[SimulatedWorker] = []
        #: Tasks of workers that were killed or suspended; which of the two is decided only at the end.
        self.suspended: list[SteppedTask] = []
        self.failed = False
        self._unsealed: set[str] = set()
        self._last_publication: dict[UUID, Publication] = {}

    async def begin(self, volumes: int, snapshots: int) -> None:
        """Start with an empty database, and some volumes, each with at most one snapshot."""
        await self.observer.execute(_EMPTY)
        await self.services.registry.register()
        await self.services.directory.refresh()
        async with self.database.transaction() as session:
            for number in range(volumes):
                volume = _a_volume(f"there-{number}")
                session.add(volume)
                self.driver.put(volume.id, volume.size)
                if number < snapshots:
                    await session.flush()
                    snapshot = _a_snapshot(volume)
                    session.add(snapshot)
                    self.driver.put(volume.id, volume.size, snapshot.id)
        self.workers = [self._new_worker() for _ in range(WORKERS)]
        self.now = await WorldState.read(self.observer, self.driver)

    # --- observing ---------------------------------------------------------------------------------------

    async def observe(self, cause: Outcome | str | None) -> None:
        """Read the new state and check the invariants of the step from the last one to it."""
        before, now = self.now, await WorldState.read(self.observer, self.driver)
        for publication in self.driver.publications[before.publications :]:
            if str(publication.subject_id) not in self._unsealed:
                invariants.check_publication(publication, before, self._last_publication.get(publication.subject_id))
            self._last_publication[publication.subject_id] = publication
        invariants.check_step(before, now, cause, self._unsealed)
        self._record_ended_jobs(before, now, cause)
        invariants.check_state(now, self._unsealed)
        self.now = now

    def _record_ended_jobs(self, before: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
        for job in now.jobs.values():
            if not now.ended(job["id"]) or (job["id"] in before.jobs and before.ended(job["id"])):
                continue
            publishes_snapshot = job["kind"] in ("snapshot.take", "snapshot.delete")
            subject = job["snapshot_id"] if publishes_snapshot else job["volume_id"]
            if job["status"] == "succeeded" and subject not in self._unsealed:
                invariants.check_success(job, now)
            subjects = {subject}
            if job["kind"] == "volume.clone":
                subjects.add(str(intermediate_of(UUID(subject))))
            if invariants.ended_unsealed(job, cause):
                self._unsealed |= subjects
            elif isinstance(cause, Succeeded | Failed | Cancelled):
                self._unsealed -= subjects

    def _sealed_part(self, state: WorldState) -> WorldState:
        """Return the part of a state that no stale attempt may change."""
        volumes = {name: size for name, size in state.stored_volumes.items() if name not in self._unsealed}
        snapshots = {name: size for name, size in state.stored_snapshots.items() if name not in self._unsealed}
        return replace(state, stored_volumes=volumes, stored_snapshots=snapshots, publications=0)

    def _new_worker(self) -> SimulatedWorker:
        services = self.services
        engine = recording_outcomes(an_engine(services))
        attempts = AttemptPerformer(worker_handlers(services, lambda: 1), RetryPolicy(RETRY_SECONDS))
        runner = Runner(engine, self.queue, attempts, slots=100)
        heartbeat = Heartbeat(
            engine, runner.running, lease=LEASE_SECONDS, stall=StallLimits(LEASE_SECONDS, LEASE_SECONDS)
        )
        return SimulatedWorker(engine, runner, heartbeat)

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note that an invariant failed, so that the teardown does not try to finish the jobs."""
        try:
            yield
        except BaseException:
            self.failed = True
            raise


def _a_volume(name: str) -> Volume:
    state = VolumeState.AVAILABLE
    return Volume(
        id=uuid7(), name=name, backend="memory", state=state, size=MIB, version=1, labels={}, project_id=DEFAULT_PROJECT
    )


def _a_snapshot(volume: Volume) -> Snapshot:
    state = SnapshotState.READY
    return Snapshot(
        id=uuid7(),
        volume_id=volume.id,
        name="there",
        state=state,
        size=volume.size,
        version=1,
        project_id=DEFAULT_PROJECT,
    )
