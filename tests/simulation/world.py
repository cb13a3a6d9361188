"""What may happen: users ask, workers take their steps or do not, time passes, and in the end everybody wakes up."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from domain.bulk.kinds import BULK_KINDS
from domain.errors import CisternError
from domain.jobs.model import Dispatch, Job
from tests.simulation.scene import Scene, SimulatedWorker
from tests.simulation.stepping import Accident, SteppedTask
from tests.simulation.world_state import Row, WorldState

#: So many rounds of everything bring every job to its end.
_ROUNDS: Final = 60

_TIME_PASSES: Final = text(
    "WITH waiting AS (UPDATE job_items SET due_at = due_at - interval '1 day' WHERE status = 'pending')"
    " UPDATE jobs SET run_at = run_at - interval '2 days', dispatched_at = dispatched_at - interval '2 days'"
    " WHERE status = 'queued' OR (status = 'running' AND lease_expires_at IS NULL)"
)
_LEASE_IS_OVER: Final = text("UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = :id")


class World(Scene):
    """The scene, and what may happen on it."""

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
            assert accepted.dispatch in self.bell.messages
        if accepted is None and accident is not Accident.ANSWER_LOST:
            assert replace(self.now, publications=0) == replace(was, publications=0), "refused, and yet done"

    # --- what workers do ---------------------------------------------------------------------------------

    async def deliver(self, dispatch: Dispatch, open_worker: SimulatedWorker, accident: Accident | None = None) -> None:
        """Give a message to a worker, which tries to claim its job."""
        was, stepped = self.now, SteppedTask(open_worker.runner.run(dispatch), f"{dispatch}")
        open_worker.stepped_tasks.append(stepped)
        await stepped.go_on()
        await self.go_on(stepped, accident)
        job = was.jobs[str(dispatch.job_id)]
        if job["epoch"] != dispatch.epoch or job["status"] != "queued":
            await self.finish(stepped)  # the row might only have been locked, so it asks twice
            assert self.now == was, f"an old message was heard: {dispatch}"

    async def go_on(self, stepped: SteppedTask, accident: Accident | None = None, *, gate: int = 0) -> None:
        step = await stepped.go_on(accident, gate=gate)
        if not step.endswith("done"):  # hearing from the storage changes nothing yet
            await self.look(stepped.outcome)

    async def finish(self, stepped: SteppedTask) -> None:
        while not stepped.ended:
            await self.go_on(stepped)

    def fall_asleep(self, open_worker: SimulatedWorker) -> None:
        """Have a worker do nothing any more, and another one started in its place."""
        self.asleep += open_worker.at_work()
        self.workshops[self.workshops.index(open_worker)] = self._workshop()

    async def shut_down(self, open_worker: SimulatedWorker) -> None:
        open_worker.runner.release_all()
        self.fall_asleep(open_worker)  # but it may still hand back what it has: see `wake`

    async def beat(self, open_worker: SimulatedWorker, accident: Accident | None) -> None:
        self.database.next_accident = accident
        with suppress(CisternError):
            await open_worker.heartbeat.beat()
        await self.look("beat")

    # --- what time does ----------------------------------------------------------------------------------

    async def pass_time(self) -> None:
        """Let everything be due, and every message be old."""
        await self.eyes.execute(_TIME_PASSES)
        self.now = await WorldState.of(self.eyes, self.driver)

    async def end_lease(self, job: Row, *, noticed: bool) -> None:
        """Let a lease be over. ``noticed``: by the worker's own clock, too; else that stood still meanwhile."""
        await self.eyes.execute(_LEASE_IS_OVER, {"id": job["id"]})
        for open_worker in self.workshops if noticed else ():
            run = open_worker.runner.running.get(UUID(job["id"]))
            if run is not None and run.job.epoch == job["epoch"]:
                run.grant.extend(0.0)
        self.now = await WorldState.of(self.eyes, self.driver)

    async def keep_house(self, step: str, accident: Accident | None = None) -> None:
        engine = self.workshops[0].engine
        steps: dict[str, Callable[[], Awaitable[int]]] = {
            "rescue": engine.rescue,
            "tend": self.services.bulk.assign_lanes,
            "dispatch_due": engine.dispatch_due,
            "redispatch_lost": engine.redispatch_lost,
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
        queued = {Dispatch(UUID(job["id"]), job["epoch"]) for job in self.now.live() if job["status"] == "queued"}
        assert queued <= self.bell.messages, "a job waits that nobody is told of"

    # --- the end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Have one healthy worker carry on where all others stopped: everything ends."""
        for open_worker in list(self.workshops):
            self.fall_asleep(open_worker)
        for _ in range(_ROUNDS):
            if not self.now.live():
                break
            for job in self.now.live():
                if job["lease_expires_at"] is not None:
                    await self.end_lease(job, noticed=False)
            await self.keep_house("rescue")
            if any(job["kind"] in BULK_KINDS for job in self.now.live()):
                await self.keep_house("tend")
            await self.ring_everything()
            await self._answer_all()
        assert not self.now.live(), f"accepted, and never ended: {self.now.live()}"

    async def _answer_all(self) -> None:
        """Answer what there is of messages, and those that come meanwhile, as long as there is no end of them."""
        for _ in range(_ROUNDS):
            for dispatch in sorted(self.bell.messages):
                self.bell.messages.discard(dispatch)
                await self.deliver(dispatch, self.workshops[0])
                for stepped in self.workshops[0].at_work():
                    await self.finish(stepped)

    async def wake_all(self) -> None:
        """Wake everybody up who was asleep: nothing changes any more."""
        was = self._firm(self.now)
        for stepped in self.asleep:
            while not stepped.ended:
                await self.go_on(stepped)
                assert self._firm(self.now) == was, "a sleeper changed something"
        self.asleep = []

    async def strike_the_set(self) -> None:
        """End what is left of all puppets."""
        for stepped in [
            *self.asleep,
            *(stepped for open_worker in self.workshops for stepped in open_worker.stepped_tasks),
        ]:
            stepped.task.cancel()
            with suppress(BaseException):
                await stepped.task


def choose(items: list[Any], number: int) -> Any:
    """One of these."""
    return items[number % len(items)]
