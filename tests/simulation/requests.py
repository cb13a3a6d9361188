"""What users may do at any time: ask for anything of anything, busy or not, and end or repeat what they asked for."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.bulk.kinds import BULK_KINDS
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.jobs.model import Job
from domain.jobs.states import RETRYABLE
from domain.snapshots.retention import RetentionRule
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.simulation.harness import Harness
from tests.simulation.scene import MIB
from tests.simulation.stepping import Accident
from tests.simulation.world import World, choose
from tests.simulation.world_state import Row

ANY: Final = st.integers(0, 1000)
COMMITS: Final = st.sampled_from([None, None, None, Accident.COMMIT_LOST, Accident.ANSWER_LOST])
BULKS: Final = 3
SCHEDULE: Final = uuid4()


def if_any(things: Callable[[Any], list[Any]]) -> Callable[[Any], Any]:
    """Where there is anything to choose from."""
    return precondition(lambda machine: bool(things(machine)))


class Asking(RuleBasedStateMachine):
    """A world, and its users."""

    harness: ClassVar[Harness]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.harness.database, self.harness.eyes, self.harness.settings)
        self.services = self.world.services
        self.names = 0

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        with self.world.judged():
            self.harness.run(coroutine)

    @initialize(volumes=st.integers(2, 4), snapshots=st.integers(0, 3))
    def begin(self, volumes: int, snapshots: int) -> None:
        self.harness.run(self.world.begin(volumes, snapshots))

    @invariant()
    def a_step_was_taken(self) -> None:
        """The laws are looked after in the middle of steps, too: see `World.look`."""
        self.harness.steps += 1

    def volumes(self) -> list[Row]:
        return list(self.world.now.volumes.values())

    def snapshots(self) -> list[Row]:
        return list(self.world.now.snapshots.values())

    def jobs(self) -> list[Row]:
        return list(self.world.now.jobs.values())

    def new(self, size: int | None = None) -> NewVolume:
        self.names += 1
        return NewVolume(f"new-{self.names}", size)

    @if_any(volumes)
    @rule(which=ANY, mib=st.integers(1, 3), accident=COMMITS)
    def expand(self, which: int, mib: int, accident: Accident | None) -> None:
        volume, growth = choose(self.volumes(), which), Growth(by=mib * MIB)
        request = partial(self.services.volumes.request_expand, volume["id"], growth)
        self.do(self.world.ask(request, accident, fits=volume["state"] == "available"))

    @if_any(volumes)
    @rule(which=ANY, kind=st.sampled_from(["create", "take", "delete"]), accident=COMMITS)
    def ask_of_a_volume(self, which: int, kind: str, accident: Accident | None) -> None:
        volume, asked = choose(self.volumes(), which), self.services.volumes
        depends = any(snapshot["volume_id"] == volume["id"] for snapshot in self.snapshots())
        take = partial(self.services.snapshots.request_take, volume["id"], self.new().name)
        request, fits = {
            "create": (partial(asked.request_create, self.new(MIB + which)), True),
            "take": (take, volume["state"] == "available"),
            "delete": (
                partial(asked.request_delete, volume["id"]),
                volume["state"] in ("available", "error") and not depends,
            ),
        }[kind]
        self.do(self.world.ask(request, accident, fits=fits))

    @if_any(snapshots)
    @rule(which=ANY, kind=st.sampled_from(["restore", "clone", "delete"]), accident=COMMITS)
    def ask_of_a_snapshot(self, which: int, kind: str, accident: Accident | None) -> None:
        snapshot = choose(self.snapshots(), which)
        volume, asked = self.world.now.volumes[snapshot["volume_id"]], self.services.snapshots
        request, fits = {
            "restore": (
                partial(asked.request_restore, snapshot["id"]),
                (snapshot["state"], volume["state"]) == ("ready", "available"),
            ),
            "clone": (
                partial(asked.request_clone, snapshot["id"], self.new()),
                snapshot["state"] in ("ready", "cloning"),
            ),
            "delete": (partial(asked.request_delete, snapshot["id"]), snapshot["state"] in ("ready", "error")),
        }[kind]
        self.do(self.world.ask(request, accident, fits=fits))

    def may_ask_for_all(self) -> bool:
        """Bulk jobs take many steps: more of them would leave none for anything else."""
        return len([job for job in self.jobs() if job["kind"] in BULK_KINDS]) < BULKS

    @precondition(may_ask_for_all)
    @rule(mib=st.integers(1, 2), lanes=st.integers(1, 2), accident=COMMITS)
    def expand_all(self, mib: int, lanes: int, accident: Accident | None) -> None:
        wanted = BulkExpandRequest(GrowthPolicy(by=mib * MIB), max_concurrent=lanes)
        self.do(self.world.ask(partial(self.services.expansion.request_expand, wanted), accident, fits=True))

    @precondition(may_ask_for_all)
    @rule(lanes=st.integers(1, 2), scheduled=st.booleans(), accident=COMMITS)
    def snapshot_all(self, lanes: int, scheduled: bool, accident: Accident | None) -> None:  # noqa: FBT001
        keep = RetentionRule(last=1) if scheduled else RetentionRule()
        wanted = BulkSnapshotRequest(self.new().name, max_concurrent=lanes, keep=keep)
        request = partial(self.run_schedule if scheduled else self.services.bulk_snapshots.request_snapshots, wanted)
        self.do(self.world.ask(request, accident, fits=True))

    async def run_schedule(self, wanted: BulkSnapshotRequest) -> Job:
        run = {"schedule_id": SCHEDULE, "scheduled_for": datetime.now(UTC)}
        async with self.world.database.transaction() as session:
            job = await self.services.bulk_snapshots.add(session, wanted, **run)
        await self.world.bell.dispatch([job.dispatch])
        return job

    @if_any(jobs)
    @rule(which=ANY, accident=COMMITS)
    def cancel(self, which: int, accident: Accident | None) -> None:
        job = choose(self.jobs(), which)
        fits = not self.world.now.ended(job["id"]) and job["parent_id"] is None
        self.do(self.world.ask(partial(self.services.jobs.cancel, job["id"]), accident, fits=fits))

    @if_any(jobs)
    @rule(which=ANY, accident=COMMITS)
    def retry(self, which: int, accident: Accident | None) -> None:
        ended = [job for job in self.jobs() if job["status"] in RETRYABLE]
        job = choose(ended or self.jobs(), which)
        fits = None if ended else False
        self.do(self.world.ask(partial(self.services.jobs.retry, job["id"]), accident, fits=fits))
