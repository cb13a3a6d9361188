"""Requests, crashes, late settles, doubled and missing messages, in any order: hypothesis looks for one that breaks.

``CISTERN_LONG=1`` has it look ten times as long, each time elsewhere; ``CISTERN_SEED`` says where to begin.
``CISTERN_HASTY=1`` does not look for a smaller find than the first: for `tests.mutation.__main__`.
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

import domain.bulk.item_work
import worker.lanes
import worker.runner
from domain.jobs.model import Dispatch
from domain.settings import Settings
from tests.simulation.harness import Harness
from tests.simulation.requests import ANY, COMMITS, Asking, if_any
from tests.simulation.scene import LEASE_SECONDS, WORKERS, SimulatedWorker
from tests.simulation.stepping import Accident, SteppedTask
from tests.simulation.world import choose
from tests.simulation.world_state import Row

LONG = bool(os.environ.get("CISTERN_LONG"))
HASTY = bool(os.environ.get("CISTERN_HASTY"))
STEPS = 10_000 if LONG else 2_000
SEED = int(os.environ.get("CISTERN_SEED") or (secrets.randbelow(2**32) if LONG else 0))
PROFILE = profile(
    max_examples=10,
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate] if HASTY else [Phase.generate, Phase.shrink],
    # An example is dozens of steps on a real PostgreSQL: slow, and no sign of a bad strategy.
    suppress_health_check=[HealthCheck.too_slow],
)
WORKER = st.integers(0, WORKERS - 1)
FEW_OR_ALL = st.sampled_from([1, 2, 3, 5, 10])


class AnyOrder(Asking):
    """What else may happen: to messages, to workers, and by the passing of time."""

    # --- messages ----------------------------------------------------------------------------------------

    def messages(self) -> list[Dispatch]:
        return sorted(self.world.bell.messages)

    @if_any(messages)
    @rule(which=ANY, worker=WORKER, accident=COMMITS)
    def deliver(self, which: int, worker: int, accident: Accident | None) -> None:
        dispatch = choose(self.messages(), which)
        self.do(self.world.deliver(dispatch, self.world.workshops[worker], accident))

    @if_any(messages)
    @rule(which=ANY, worker=WORKER, steps=st.sampled_from([1, 2, 3, 5, 10]))
    def deliver_and_go_on(self, which: int, worker: int, steps: int) -> None:
        open_worker = self.world.workshops[worker]
        self.do(self.world.deliver(choose(self.messages(), which), open_worker))
        self.go_on_with(open_worker.stepped_tasks[-1], steps)

    @if_any(messages)
    @rule(which=ANY, workers=st.tuples(WORKER, WORKER))
    def deliver_twice(self, which: int, workers: tuple[int, int]) -> None:
        dispatch = choose(self.messages(), which)
        for number in workers:
            self.do(self.world.deliver(dispatch, self.world.workshops[number]))

    def heard(self) -> list[Dispatch]:
        return sorted(self.world.bell.rung - self.world.bell.messages)

    @if_any(heard)
    @rule(which=ANY, worker=WORKER)
    def deliver_an_old_one(self, which: int, worker: int) -> None:
        self.do(self.world.deliver(choose(self.heard(), which), self.world.workshops[worker]))

    @if_any(messages)
    @rule()
    def lose_all_messages(self) -> None:
        self.world.bell.messages.clear()

    # --- workers -----------------------------------------------------------------------------------------

    def stepped_tasks(self) -> list[SteppedTask]:
        everybody = [stepped for open_worker in self.world.workshops for stepped in open_worker.at_work()]
        return everybody + [stepped for stepped in self.world.asleep if not stepped.ended]

    @if_any(stepped_tasks)
    @rule(which=ANY, steps=st.sampled_from([1, 2, 3, 5, 10]), gate=st.integers(0, 2))
    def go_on(self, which: int, steps: int, gate: int) -> None:
        self.go_on_with(choose(self.stepped_tasks(), which), steps, gate)

    def go_on_with(self, stepped: SteppedTask, steps: int, gate: int = 0) -> None:
        for _ in range(steps):
            if not stepped.ended:
                self.do(self.world.go_on(stepped, gate=gate))

    @if_any(stepped_tasks)
    @rule(which=ANY, accident=st.sampled_from(Accident), gate=st.integers(0, 2))
    def go_wrong(self, which: int, accident: Accident, gate: int) -> None:
        self.do(self.world.go_on(choose(self.stepped_tasks(), which), accident, gate=gate))

    def busy(self) -> list[SimulatedWorker]:
        return [open_worker for open_worker in self.world.workshops if open_worker.at_work()]

    @if_any(busy)
    @rule(which=ANY, rescued=st.booleans())
    def die_or_fall_asleep(self, which: int, *, rescued: bool) -> None:
        open_worker = choose(self.busy(), which)
        held = [str(job_id) for job_id in open_worker.runner.running]
        self.world.fall_asleep(open_worker)
        for job in [job for job in self.leased() if rescued and job["id"] in held]:
            self.do(self.world.end_lease(job, noticed=False))
        if rescued:
            self.rescue()

    @if_any(busy)
    @rule(which=ANY)
    def shut_down(self, which: int) -> None:
        self.do(self.world.shut_down(choose(self.busy(), which)))

    @rule(worker=WORKER, accident=COMMITS)
    def beat(self, worker: int, accident: Accident | None) -> None:
        self.do(self.world.beat(self.world.workshops[worker], accident))

    # --- time and housekeeping ---------------------------------------------------------------------------

    def leased(self) -> list[Row]:
        return [job for job in self.jobs() if job["lease_expires_at"] is not None]

    @if_any(leased)
    @rule(which=ANY, noticed=st.booleans(), rescued=st.booleans(), steps=st.sampled_from([0, 0, 1, 2, 10]))
    def end_a_lease(self, which: int, *, noticed: bool, rescued: bool, steps: int) -> None:
        job = choose(self.leased(), which)
        self.do(self.world.end_lease(job, noticed=noticed))
        if rescued:
            self.rescue()
        for late in [
            stepped for stepped in self.stepped_tasks() if stepped.name == str(Dispatch(UUID(job["id"]), job["epoch"]))
        ]:
            self.go_on_with(late, steps)

    def rescue(self) -> None:
        for step in ("rescue", "ring_due"):
            self.do(self.world.keep_house(step))

    @rule(step=st.sampled_from(["rescue", "tend", "ring_due", "ring_lost"]), accident=COMMITS)
    def keep_house(self, step: str, accident: Accident | None) -> None:
        self.do(self.world.keep_house(step, accident))

    @rule()
    def ring_everything(self) -> None:
        self.do(self.world.ring_everything())

    def teardown(self) -> None:
        if not self.world.broken and self.world.workshops:
            self.do(self.world.drain())
            self.do(self.world.wake_all())
        self.harness.run(self.world.strike_the_set())


@pytest.fixture
def harness(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """The servers, and no part of the product that looks at a clock: examples must go the same way twice."""
    monkeypatch.setattr(worker.lanes, "_SLICE_SECONDS", 0.0)
    monkeypatch.setattr(worker.lanes, "_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(worker.lanes, "_CANCEL_POLL_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(worker.runner, "_SETTLE_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(domain.bulk.item_work, "_PAUSE_SECONDS", 0.0)
    logging.disable(logging.CRITICAL)  # thousands of lines, of which nobody could say to which step they belong
    harness = Harness(settings)
    yield harness
    harness.close()
    logging.disable(logging.NOTSET)


def test_in_any_order_nothing_is_lost_and_nothing_happens_twice(harness: Harness) -> None:
    AnyOrder.harness = harness
    number = SEED
    while harness.steps < STEPS:
        try:
            run_state_machine_as_test(seed(number)(AnyOrder), settings=PROFILE)
        except BaseException as error:
            error.add_note(f"CISTERN_SEED={number} goes the same way again.")
            raise
        number += 1
