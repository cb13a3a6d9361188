"""The requests of users: they may request anything for any subject at any time, and cancel or retry any job."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.kinds import BULK_KINDS
from domain.jobs.model import Job
from domain.jobs.states import RETRYABLE
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.simulation.cluster import MIB
from tests.simulation.harness import Harness
from tests.simulation.scheduler import Fault
from tests.simulation.world import World, choose
from tests.simulation.world_state import Row

ANY: Final = st.integers(0, 1000)
COMMIT_FAULTS: Final = st.sampled_from([None, None, None, Fault.COMMIT_LOST, Fault.ANSWER_LOST])
MAX_BULK_JOBS: Final = 3
SCHEDULE: Final = uuid4()


def if_any(items: Callable[[Any], list[Any]]) -> Callable[[Any], Any]:
    """Enable a rule only if there is an item to choose."""
    return precondition(lambda machine: bool(items(machine)))


class UserRequests(RuleBasedStateMachine):
    """A world, and the requests of its users."""

    harness: ClassVar[Harness]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.harness.database, self.harness.observer, self.harness.settings)
        self.services = self.world.services
        self.names = 0

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        with self.world.noting_failure():
            self.harness.run(coroutine)

    @initialize(volumes=st.integers(2, 4), snapshots=st.integers(0, 3))
    def begin(self, volumes: int, snapshots: int) -> None:
        self.harness.run(self.world.begin(volumes, snapshots))

    @invariant()
    def a_step_was_taken(self) -> None:
        """Count steps. The invariants themselves are also checked within steps: see `Cluster.observe`."""
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
    @rule(which=ANY, mib=st.integers(1, 3), fault=COMMIT_FAULTS)
    def expand(self, which: int, mib: int, fault: Fault | None) -> None:
        volume, growth = choose(self.volumes(), which), Growth(by=mib * MIB)
        send = partial(self.services.volumes.request_expand, volume["id"], growth)
        self.do(self.world.request(send, fault, acceptable=volume["state"] == "available"))

    @if_any(volumes)
    @rule(which=ANY, kind=st.sampled_from(["create", "take", "clone", "delete"]), fault=COMMIT_FAULTS)
    def change_volume(self, which: int, kind: str, fault: Fault | None) -> None:
        volume, service = choose(self.volumes(), which), self.services.volumes
        has_snapshots = any(snapshot["volume_id"] == volume["id"] for snapshot in self.snapshots())
        take = partial(self.services.snapshots.request_take, volume["id"], self.new().name)
        send, acceptable = {
            "create": (partial(service.request_create, self.new(MIB + which)), True),
            "take": (take, volume["state"] == "available"),
            "clone": (
                partial(self.services.snapshots.request_clone_of_volume, volume["id"], self.new()),
                volume["state"] == "available",
            ),
            "delete": (
                partial(service.request_delete, volume["id"]),
                volume["state"] in ("available", "error") and not has_snapshots,
            ),
        }[kind]
        self.do(self.world.request(send, fault, acceptable=acceptable))

    @if_any(snapshots)
    @rule(which=ANY, kind=st.sampled_from(["restore", "clone", "delete"]), fault=COMMIT_FAULTS)
    def change_snapshot(self, which: int, kind: str, fault: Fault | None) -> None:
        snapshot = choose(self.snapshots(), which)
        volume, service = self.world.now.volumes[snapshot["volume_id"]], self.services.snapshots
        send, acceptable = {
            "restore": (
                partial(service.request_restore, snapshot["id"]),
                (snapshot["state"], volume["state"]) == ("ready", "available"),
            ),
            "clone": (
                partial(service.request_clone, snapshot["id"], self.new()),
                snapshot["state"] in ("ready", "cloning"),
            ),
            "delete": (partial(service.request_delete, snapshot["id"]), snapshot["state"] in ("ready", "error")),
        }[kind]
        self.do(self.world.request(send, fault, acceptable=acceptable))

    def may_start_bulk_job(self) -> bool:
        """Limit the number of bulk jobs: they take many steps, and more of them would leave none for other jobs."""
        return len([job for job in self.jobs() if job["kind"] in BULK_KINDS]) < MAX_BULK_JOBS

    @precondition(may_start_bulk_job)
    @rule(mib=st.integers(1, 2), lanes=st.integers(1, 2), fault=COMMIT_FAULTS)
    def expand_all(self, mib: int, lanes: int, fault: Fault | None) -> None:
        request = BulkExpandRequest(GrowthPolicy(by=mib * MIB), max_concurrent=lanes)
        send = partial(self.services.bulk.request, request)
        self.do(self.world.request(send, fault, acceptable=True))

    @precondition(may_start_bulk_job)
    @rule(lanes=st.integers(1, 2), scheduled=st.booleans(), fault=COMMIT_FAULTS)
    def snapshot_all(self, lanes: int, scheduled: bool, fault: Fault | None) -> None:  # noqa: FBT001
        keep = RetentionRule(last=1) if scheduled else RetentionRule()
        request = BulkSnapshotRequest(self.new().name, max_concurrent=lanes, keep=keep)
        send = partial(self.run_schedule if scheduled else self.services.bulk.request, request)
        self.do(self.world.request(send, fault, acceptable=True))

    async def run_schedule(self, request: BulkSnapshotRequest) -> Job:
        run = {"schedule_id": SCHEDULE, "scheduled_for": datetime.now(UTC)}
        async with self.world.database.transaction() as session:
            job = await self.services.bulk.add(session, request, project_id=DEFAULT_PROJECT, **run)
        await self.world.queue.dispatch([job.message])
        return job

    @if_any(jobs)
    @rule(which=ANY, fault=COMMIT_FAULTS)
    def cancel(self, which: int, fault: Fault | None) -> None:
        job = choose(self.jobs(), which)
        acceptable = not self.world.now.ended(job["id"]) and job["parent_id"] is None
        self.do(self.world.request(partial(self.services.jobs.cancel, job["id"]), fault, acceptable=acceptable))

    @if_any(jobs)
    @rule(which=ANY, fault=COMMIT_FAULTS)
    def retry(self, which: int, fault: Fault | None) -> None:
        ended = [job for job in self.jobs() if job["status"] in RETRYABLE]
        job = choose(ended or self.jobs(), which)
        acceptable = None if ended else False
        self.do(self.world.request(partial(self.services.jobs.retry, job["id"]), fault, acceptable=acceptable))
