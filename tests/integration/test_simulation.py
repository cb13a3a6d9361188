"""Deterministic simulation: requests, crashes, late settlements, duplicate and lost messages in any order.

Hypothesis searches for an order that breaks an invariant (`tests.simulation.invariants`). ``CISTERN_TEST_SEED`` sets
the seed, 0 by default. ``CISTERN_TEST_LONG=1`` (`make test-long`) runs ten times as many steps, from a random seed.
``CISTERN_TEST_HASTY=1`` runs twice as many, and does not shrink a failing example; `python -m tests.mutation` sets it.
"""

import logging
import os
import secrets
from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

import domain.bulk.operation
import worker.lanes
import worker.runner
from domain.jobs.model import JobMessage
from domain.settings import Settings
from tests.simulation.cluster import LEASE_SECONDS, WORKERS, SimulatedWorker
from tests.simulation.harness import Harness
from tests.simulation.requests import ANY, COMMIT_FAULTS, UserRequests, if_any
from tests.simulation.scheduler import Fault, SteppedTask
from tests.simulation.world import choose
from tests.simulation.world_state import Row

LONG = bool(os.environ.get("CISTERN_TEST_LONG"))
HASTY = bool(os.environ.get("CISTERN_TEST_HASTY"))
STEPS = 10_000 if LONG else 2_000 if HASTY else 1_000
SEED = int(os.environ.get("CISTERN_TEST_SEED") or (secrets.randbelow(2**32) if LONG else 0))
PROFILE = profile(
    max_examples=10,
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate] if HASTY else [Phase.generate, Phase.shrink],
    # An example is dozens of steps on a real PostgreSQL: it is slow although the strategy is fine.
    suppress_health_check=[HealthCheck.too_slow],
)
WORKER = st.integers(0, WORKERS - 1)
STEP_COUNT = st.sampled_from([1, 2, 3, 5, 10])


def by_job(message: JobMessage) -> tuple[UUID, int]:
    """Order messages; those for any worker have no backend, by which they could be ordered."""
    return message.job_id, message.epoch


class Simulation(UserRequests):
    """Adds the events of messages, workers, time and maintenance to the requests of users."""

    # --- messages ----------------------------------------------------------------------------------------

    def messages(self) -> list[JobMessage]:
        return sorted(self.world.queue.messages, key=by_job)

    @if_any(messages)
    @rule(which=ANY, worker=WORKER, fault=COMMIT_FAULTS)
    def deliver(self, which: int, worker: int, fault: Fault | None) -> None:
        message = choose(self.messages(), which)
        self.do(self.world.deliver(message, self.world.workers[worker], fault))

    @if_any(messages)
    @rule(which=ANY, worker=WORKER, steps=STEP_COUNT)
    def deliver_and_advance(self, which: int, worker: int, steps: int) -> None:
        receiver = self.world.workers[worker]
        self.do(self.world.deliver(choose(self.messages(), which), receiver))
        self.advance_task(receiver.stepped_tasks[-1], steps)

    @if_any(messages)
    @rule(which=ANY, workers=st.tuples(WORKER, WORKER))
    def deliver_twice(self, which: int, workers: tuple[int, int]) -> None:
        message = choose(self.messages(), which)
        for number in workers:
            self.do(self.world.deliver(message, self.world.workers[number]))

    def old_messages(self) -> list[JobMessage]:
        return sorted(self.world.queue.sent - self.world.queue.messages, key=by_job)

    @if_any(old_messages)
    @rule(which=ANY, worker=WORKER)
    def deliver_old_message(self, which: int, worker: int) -> None:
        self.do(self.world.deliver(choose(self.old_messages(), which), self.world.workers[worker]))

    @if_any(messages)
    @rule()
    def lose_all_messages(self) -> None:
        self.world.queue.messages.clear()

    # --- workers -----------------------------------------------------------------------------------------

    def stepped_tasks(self) -> list[SteppedTask]:
        active = [stepped for worker in self.world.workers for stepped in worker.active_tasks()]
        return active + [stepped for stepped in self.world.suspended if not stepped.ended]

    @if_any(stepped_tasks)
    @rule(which=ANY, steps=STEP_COUNT, gate=st.integers(0, 2))
    def advance(self, which: int, steps: int, gate: int) -> None:
        self.advance_task(choose(self.stepped_tasks(), which), steps, gate)

    def advance_task(self, stepped: SteppedTask, steps: int, gate: int = 0) -> None:
        for _ in range(steps):
            if not stepped.ended:
                self.do(self.world.advance(stepped, gate=gate))

    @if_any(stepped_tasks)
    @rule(which=ANY, fault=st.sampled_from(Fault), gate=st.integers(0, 2))
    def fail_step(self, which: int, fault: Fault, gate: int) -> None:
        self.do(self.world.advance(choose(self.stepped_tasks(), which), fault, gate=gate))

    def busy_workers(self) -> list[SimulatedWorker]:
        return [worker for worker in self.world.workers if worker.active_tasks()]

    @if_any(busy_workers)
    @rule(which=ANY, rescued=st.booleans())
    def kill_or_suspend(self, which: int, *, rescued: bool) -> None:
        worker = choose(self.busy_workers(), which)
        held = [str(job_id) for job_id in worker.runner.running]
        self.world.suspend(worker)
        for job in [job for job in self.leased() if rescued and job["id"] in held]:
            self.do(self.world.end_lease(job, noticed=False))
        if rescued:
            self.rescue()

    @if_any(busy_workers)
    @rule(which=ANY)
    def shut_down(self, which: int) -> None:
        self.do(self.world.shut_down(choose(self.busy_workers(), which)))

    @rule(worker=WORKER, fault=COMMIT_FAULTS)
    def beat(self, worker: int, fault: Fault | None) -> None:
        self.do(self.world.beat(self.world.workers[worker], fault))

    # --- time and maintenance ----------------------------------------------------------------------------

    def leased(self) -> list[Row]:
        return [job for job in self.jobs() if job["lease_expires_at"] is not None]

    @if_any(leased)
    @rule(which=ANY, noticed=st.booleans(), rescued=st.booleans(), steps=st.sampled_from([0, 0, 1, 2, 10]))
    def end_lease(self, which: int, *, noticed: bool, rescued: bool, steps: int) -> None:
        job = choose(self.leased(), which)
        self.do(self.world.end_lease(job, noticed=noticed))
        if rescued:
            self.rescue()
        message = str(JobMessage(UUID(job["id"]), job["epoch"], job["backend"]))
        for stepped in [stepped for stepped in self.stepped_tasks() if stepped.name == message]:
            self.advance_task(stepped, steps)

    def rescue(self) -> None:
        for task in ("rescue", "dispatch_due"):
            self.do(self.world.maintain(task))

    @rule(
        task=st.sampled_from(["rescue", "assign_lanes", "dispatch_due", "redispatch_lost"]),
        fault=COMMIT_FAULTS,
    )
    def maintain(self, task: str, fault: Fault | None) -> None:
        self.do(self.world.maintain(task, fault))

    @rule()
    def dispatch_everything(self) -> None:
        self.do(self.world.dispatch_everything())

    def teardown(self) -> None:
        if not self.world.failed and self.world.workers:
            self.do(self.world.drain())
            self.do(self.world.resume_all())
        self.harness.run(self.world.cancel_all())


@pytest.fixture
def harness(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """The servers, with all waits of the product disabled: an example must be reproducible."""
    monkeypatch.setattr(worker.lanes, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(worker.lanes, "_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(worker.lanes, "_CANCEL_POLL_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(worker.runner, "_SETTLE_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(domain.bulk.operation, "_PAUSE_SECONDS", 0.0)
    logging.disable(logging.CRITICAL)  # thousands of lines that cannot be assigned to a step
    harness = Harness(settings)
    yield harness
    harness.close()
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_jobs_are_never_lost_and_take_effect_once_in_any_order_of_events(harness: Harness) -> None:
    Simulation.harness = harness
    number = SEED
    while harness.steps < STEPS:
        try:
            run_state_machine_as_test(seed(number)(Simulation), settings=PROFILE)
        except BaseException as error:
            error.add_note(f"Reproduce with CISTERN_TEST_SEED={number}.")
            raise
        number += 1
