"""Where it all happens: workers, rows, storage, and one pair of eyes that sees after each step that laws are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from domain.jobs.engine import JobEngine
from domain.jobs.outcomes import Cancelled, Failed, Outcome, Succeeded
from domain.jobs.retry import RetryPolicy
from domain.services import Services, compose
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.volumes.model import Volume
from domain.volumes.states import VolumeState
from tests.integration.job_builders import an_engine
from tests.simulation import invariants as laws
from tests.simulation.doubles import (
    FaultyDatabase,
    JournalingMemoryDriver,
    Publication,
    SimulatedQueue,
    Staged,
    count_calls,
    each_in_own_transaction,
)
from tests.simulation.stepping import SteppedTask
from tests.simulation.world_state import WorldState
from worker.attempts import Attempts
from worker.heartbeat import Heartbeat
from worker.main import handlers
from worker.runner import Runner

MIB: Final = 2**20
WORKERS: Final = 3
#: No lease is over before it is made to be.
LEASE_SECONDS: Final = 86_400.0
#: No try comes before it is made to.
RETRY_SECONDS: Final = 1000.0
_EMPTY: Final = text("TRUNCATE jobs, job_items, volumes, snapshots, workers")


@dataclass
class SimulatedWorker:
    """One worker process."""

    engine: JobEngine
    runner: Runner
    heartbeat: Heartbeat
    stepped_tasks: list[SteppedTask] = field(default_factory=list)

    def at_work(self) -> list[SteppedTask]:
        self.stepped_tasks = [stepped for stepped in self.stepped_tasks if not stepped.ended]
        return self.stepped_tasks


class Scene:
    """Everything, and what has been seen of it."""

    now: WorldState

    def __init__(self, database: FaultyDatabase, eyes: AsyncConnection, settings: Settings) -> None:
        self.database = database
        self.eyes = eyes
        self.driver = JournalingMemoryDriver()
        self.bell = SimulatedQueue()
        backends = Backends({"memory": Staged.on(self.driver)}, {"memory": "memory"})
        self.services: Services = each_in_own_transaction(compose(settings, database, self.bell, backends))
        self.workshops: list[SimulatedWorker] = []
        #: Workers that were killed, or stopped: nobody knows which before the end.
        self.asleep: list[SteppedTask] = []
        self.broken = False
        self._loose: set[str] = set()
        self._last: dict[UUID, Publication] = {}

    async def begin(self, volumes: int, snapshots: int) -> None:
        """Start from nothing but some volumes, each with at most one snapshot."""
        await self.eyes.execute(_EMPTY)
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
        self.workshops = [self._workshop() for _ in range(WORKERS)]
        self.now = await WorldState.of(self.eyes, self.driver)

    # --- looking -----------------------------------------------------------------------------------------

    async def look(self, cause: Outcome | str | None) -> None:
        """See what has become of everything, and judge."""
        was, now = self.now, await WorldState.of(self.eyes, self.driver)
        for publication in self.driver.publications[was.publications :]:
            if str(publication.subject_id) not in self._loose:
                laws.of_publishing(publication, was, self._last.get(publication.subject_id))
            self._last[publication.subject_id] = publication
        laws.of_a_step(was, now, cause, self._loose)
        self._note_ends(was, now, cause)
        laws.at_any_moment(now, self._loose)
        self.now = now

    def _note_ends(self, was: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
        for job in now.jobs.values():
            if not now.ended(job["id"]) or (job["id"] in was.jobs and was.ended(job["id"])):
                continue
            by_snapshot = job["kind"] in ("snapshot.take", "snapshot.delete")
            subject = job["snapshot_id"] if by_snapshot else job["volume_id"]
            if job["status"] == "succeeded" and subject not in self._loose:
                laws.of_success(job, now)
            if laws.is_loose(job, cause):
                self._loose.add(subject)
            elif isinstance(cause, Succeeded | Failed | Cancelled):
                self._loose.discard(subject)

    def _firm(self, state: WorldState) -> WorldState:
        """What nobody who comes late may change."""
        disk = {name: size for name, size in state.disk.items() if name not in self._loose}
        kept = {name: size for name, size in state.kept.items() if name not in self._loose}
        return replace(state, disk=disk, kept=kept, publications=0)

    def _workshop(self) -> SimulatedWorker:
        services = self.services
        engine = count_calls(an_engine(services))
        attempts = Attempts(handlers(services, lambda: 1), RetryPolicy(RETRY_SECONDS))
        runner = Runner(engine, self.bell, attempts, slots=100)
        heartbeat = Heartbeat(engine, runner.running, lease=LEASE_SECONDS, stall=LEASE_SECONDS)
        return SimulatedWorker(engine, runner, heartbeat)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Remember that a law was broken, so that nobody tries to come to an end."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise


def _a_volume(name: str) -> Volume:
    state = VolumeState.AVAILABLE
    return Volume(id=uuid7(), name=name, backend="memory", state=state, size=MIB, version=1, labels={})


def _a_snapshot(volume: Volume) -> Snapshot:
    state = SnapshotState.READY
    return Snapshot(id=uuid7(), volume_id=volume.id, name="there", state=state, size=volume.size, version=1)
