"""Workers, users and time, and one pair of eyes that looks after every step whether the laws were kept."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from domain.errors import CisternError
from domain.jobs.foreman import Foreman
from domain.jobs.model import Job, Ring
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
from tests.any_order.puppets import Accident, Puppet
from tests.any_order.sight import Row, Sight
from tests.any_order.stage import Bell, Fragile, Publication, Staged, Witnessed, overhear
from tests.integration.job_builders import a_foreman
from worker.heartbeat import Heartbeat
from worker.lanes import Lanes
from worker.runner import Runner

MIB: Final = 2**20
WORKERS: Final = 3
#: No lease is over before it is made to be.
LEASE_SECONDS: Final = 86_400.0
#: No try comes before it is made to.
RETRY_SECONDS: Final = 1000.0
#: So many rounds of everything bring every job to its end.
_ROUNDS: Final = 60

_EMPTY: Final = text("TRUNCATE jobs, job_items, volumes, snapshots, workers")
_TIME_PASSES: Final = text(
    "WITH waiting AS (UPDATE job_items SET due_at = due_at - interval '1 day' WHERE status = 'pending')"
    " UPDATE jobs SET run_at = run_at - interval '2 days', rung_at = rung_at - interval '2 days'"
    " WHERE status = 'queued' OR (status = 'running' AND lease_expires_at IS NULL)"
)
_LEASE_IS_OVER: Final = text("UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = :id")


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


class World:
    """Everything, and what has been seen of it."""

    now: Sight

    def __init__(self, database: Fragile, eyes: AsyncConnection, settings: Settings) -> None:
        self.database = database
        self.eyes = eyes
        self.driver = Witnessed()
        self.bell = Bell()
        backends = Backends({"memory": Staged.on(self.driver)}, {"memory": "memory"})
        self.services: Services = compose(settings, database, self.bell, backends)
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

    # --- what users do -----------------------------------------------------------------------------------

    async def ask(self, request: Callable[[], Awaitable[Job]], accident: Accident | None, *, fits: bool | None) -> None:
        """Request something. ``fits``: whether it must be accepted; None where that is not foretold."""
        was, self.database.next_accident = self.now, accident
        accepted = None
        with suppress(CisternError):
            accepted = await request()
        await self.look("request")
        if accident is None and fits is not None:
            assert (accepted is not None) == fits, f"accepted: {accepted and vars(accepted)}"
        if accepted is not None and accepted.status == "queued":
            assert accepted.ring in self.bell.messages
        if accepted is None and accident is not Accident.ANSWER_LOST:
            assert replace(self.now, publications=0) == replace(was, publications=0), "refused, and yet done"

    # --- what workers do ---------------------------------------------------------------------------------

    async def deliver(self, ring: Ring, workshop: Workshop, accident: Accident | None = None) -> None:
        """Give a message to a worker, which tries to claim its job."""
        was, puppet = self.now, Puppet(workshop.runner.run(ring), f"{ring}")
        workshop.puppets.append(puppet)
        await puppet.go_on()
        await self.go_on(puppet, accident)
        job = was.jobs[str(ring.job_id)]
        if job["rings"] != ring.ring or job["status"] != "queued":
            assert puppet.ended, f"an old message was heard: {ring}"
            assert self.now == was

    async def go_on(self, puppet: Puppet, accident: Accident | None = None, *, gate: int = 0) -> None:
        step = await puppet.go_on(accident, gate=gate)
        if not step.endswith("done"):  # hearing from the storage changes nothing yet
            await self.look(puppet.outcome)

    async def finish(self, puppet: Puppet) -> None:
        while not puppet.ended:
            await self.go_on(puppet)

    def fall_asleep(self, workshop: Workshop) -> None:
        """Have a worker do nothing any more, and another one started in its place."""
        self.asleep += workshop.at_work()
        self.workshops[self.workshops.index(workshop)] = self._workshop()

    async def shut_down(self, workshop: Workshop) -> None:
        workshop.runner.interrupt()
        self.fall_asleep(workshop)  # but it may still hand back what it has: see `wake`

    async def beat(self, workshop: Workshop, accident: Accident | None) -> None:
        self.database.next_accident = accident
        with suppress(CisternError):
            await workshop.heartbeat.beat()
        await self.look("beat")

    # --- what time does ----------------------------------------------------------------------------------

    async def pass_time(self) -> None:
        """Let everything be due, and every message be old."""
        await self.eyes.execute(_TIME_PASSES)
        self.now = await Sight.of(self.eyes, self.driver)

    async def end_lease(self, job: Row, *, noticed: bool) -> None:
        """Let a lease be over. ``noticed``: by the worker's own clock, too; else that stood still meanwhile."""
        await self.eyes.execute(_LEASE_IS_OVER, {"id": job["id"]})
        for workshop in self.workshops if noticed else ():
            run = workshop.runner.running.get(UUID(job["id"]))
            if run is not None and run.job.rings == job["rings"]:
                run.grant.extend(0.0)
        self.now = await Sight.of(self.eyes, self.driver)

    async def keep_house(self, step: str, accident: Accident | None = None) -> None:
        foreman = self.workshops[0].foreman
        steps: dict[str, Callable[[], Awaitable[int]]] = {
            "rescue": foreman.rescue,
            "tend": self.services.expansion.tend,
            "ring_due": foreman.ring_due,
            "ring_lost": foreman.ring_lost,
        }
        self.database.next_accident = accident
        with suppress(CisternError):
            await steps[step]()
        self.database.next_accident = None
        await self.look(step)

    async def ring_everything(self) -> None:
        """Whatever Redis has lost: two steps of any housekeeping find all of it."""
        await self.pass_time()
        await self.keep_house("ring_due")
        await self.keep_house("ring_lost")
        queued = {Ring(UUID(job["id"]), job["rings"]) for job in self.now.live() if job["status"] == "queued"}
        assert queued <= self.bell.messages, "a job waits that nobody is told of"

    # --- the end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Have one healthy worker carry on where all others stopped: everything ends."""
        for workshop in list(self.workshops):
            self.fall_asleep(workshop)
        for _ in range(_ROUNDS):
            if not self.now.live():
                break
            for job in self.now.live():
                if job["lease_expires_at"] is not None:
                    await self.end_lease(job, noticed=False)
            await self.keep_house("rescue")
            if any(job["kind"] == "bulk.expand" for job in self.now.live()):
                await self.keep_house("tend")
            await self.ring_everything()
            await self._answer_all()
        assert not self.now.live(), f"accepted, and never ended: {self.now.live()}"

    async def _answer_all(self) -> None:
        """Answer what there is of messages, and those that come meanwhile, as long as there is no end of them."""
        for _ in range(_ROUNDS):
            for ring in sorted(self.bell.messages):
                self.bell.messages.discard(ring)
                await self.deliver(ring, self.workshops[0])
                for puppet in self.workshops[0].at_work():
                    await self.finish(puppet)

    async def wake_all(self) -> None:
        """Wake everybody up who was asleep: nothing changes any more."""
        was = self._firm(self.now)
        for puppet in self.asleep:
            while not puppet.ended:
                await self.go_on(puppet)
                assert self._firm(self.now) == was, "a sleeper changed something"
        self.asleep = []

    async def strike_the_set(self) -> None:
        """End what is left of all puppets."""
        for puppet in [*self.asleep, *(puppet for workshop in self.workshops for puppet in workshop.puppets)]:
            puppet.task.cancel()
            with suppress(BaseException):
                await puppet.task

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
        lane = replace(services.handlers["bulk.lane"], do=Lanes(services.chunks).work)
        handlers = services.handlers | {"bulk.lane": lane}
        runner = Runner(foreman, self.bell, handlers, RetryPolicy(RETRY_SECONDS), slots=100)
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


def choose(items: list[Any], number: int) -> Any:
    """One of these."""
    return items[number % len(items)]


def _a_volume(name: str) -> Volume:
    state = VolumeState.AVAILABLE
    return Volume(id=uuid7(), name=name, backend="memory", state=state, size=MIB, version=1, labels={})


def _a_snapshot(volume: Volume) -> Snapshot:
    state = SnapshotState.READY
    return Snapshot(id=uuid7(), volume_id=volume.id, name="there", state=state, size=volume.size, version=1)
