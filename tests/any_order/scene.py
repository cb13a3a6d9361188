"""Where it all happens: workers, rows, storage, and one pair of eyes that sees after each step that laws are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from domain.jobs.foreman import Foreman
from domain.jobs.outcomes import Cancelled, Done, GaveUp, Outcome
from domain.jobs.retry import RetryPolicy
from domain.services import Services, compose
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.volumes.model import Volume
from domain.volumes.states import VolumeState
from tests.any_order import laws
from tests.any_order.puppets import Puppet
from tests.any_order.sight import Sight
from tests.any_order.stage import Bell, Fragile, Publication, Staged, Witnessed, one_by_one, overhear
from tests.integration.job_builders import a_foreman
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
class Workshop:
    """One worker process."""

    foreman: Foreman
    runner: Runner
    heartbeat: Heartbeat
    puppets: list[Puppet] = field(default_factory=list)

    def at_work(self) -> list[Puppet]:
        self.puppets = [puppet for puppet in self.puppets if not puppet.ended]
        return self.puppets


class Scene:
    """Everything, and what has been seen of it."""

    now: Sight

    def __init__(self, database: Fragile, eyes: AsyncConnection, settings: Settings) -> None:
        self.database = database
        self.eyes = eyes
        self.driver = Witnessed()
        self.bell = Bell()
        backends = Backends({"memory": Staged.on(self.driver)}, {"memory": "memory"})
        self.services: Services = one_by_one(compose(settings, database, self.bell, backends))
        self.workshops: list[Workshop] = []
        #: Workers that were killed, or stopped: nobody knows which before the end.
        self.asleep: list[Puppet] = []
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
        self.now = await Sight.of(self.eyes, self.driver)

    # --- looking -----------------------------------------------------------------------------------------

    async def look(self, cause: Outcome | str | None) -> None:
        """See what has become of everything, and judge."""
        was, now = self.now, await Sight.of(self.eyes, self.driver)
        for publication in self.driver.publications[was.publications :]:
            if str(publication.subject_id) not in self._loose:
                laws.of_publishing(publication, was, self._last.get(publication.subject_id))
            self._last[publication.subject_id] = publication
        laws.of_a_step(was, now, cause, self._loose)
        self._note_ends(was, now, cause)
        laws.at_any_moment(now, self._loose)
        self.now = now

    def _note_ends(self, was: Sight, now: Sight, cause: Outcome | str | None) -> None:
        for job in now.jobs.values():
            if not now.ended(job["id"]) or (job["id"] in was.jobs and was.ended(job["id"])):
                continue
            by_snapshot = job["kind"] in ("snapshot.take", "snapshot.delete")
            subject = job["snapshot_id"] if by_snapshot else job["volume_id"]
            if job["status"] == "succeeded" and subject not in self._loose:
                laws.of_success(job, now)
            if laws.is_loose(job, cause):
                self._loose.add(subject)
            elif isinstance(cause, Done | GaveUp | Cancelled):
                self._loose.discard(subject)

    def _firm(self, sight: Sight) -> Sight:
        """What nobody who comes late may change."""
        disk = {name: size for name, size in sight.disk.items() if name not in self._loose}
        kept = {name: size for name, size in sight.kept.items() if name not in self._loose}
        return replace(sight, disk=disk, kept=kept, publications=0)

    def _workshop(self) -> Workshop:
        services = self.services
        foreman = overhear(a_foreman(services))
        attempts = Attempts(handlers(services, lambda: 1), RetryPolicy(RETRY_SECONDS))
        runner = Runner(foreman, self.bell, attempts, slots=100)
        heartbeat = Heartbeat(foreman, runner.running, lease=LEASE_SECONDS, stall=LEASE_SECONDS)
        return Workshop(foreman, runner, heartbeat)

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
