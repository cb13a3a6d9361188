"""The events of the simulation: requests, steps of workers, crashes, the passing of time, and the end of an example."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from domain.errors import CisternError
from domain.jobs.kinds import BULK_KINDS
from domain.jobs.model import Job, JobMessage
from tests.simulation.cluster import Cluster, SimulatedWorker
from tests.simulation.doubles import received
from tests.simulation.scheduler import Fault, SteppedTask
from tests.simulation.world_state import Row, WorldState

#: Number of rounds within which every job must end.
_MAX_ROUNDS: Final = 60

_PASS_TIME: Final = text(
    "WITH waiting AS (UPDATE job_items SET due_at = due_at - interval '1 day' WHERE status = 'pending')"
    " UPDATE jobs SET run_at = run_at - interval '2 days', dispatched_at = dispatched_at - interval '2 days'"
    " WHERE status = 'queued' OR (status = 'running' AND lease_expires_at IS NULL)"
)
_EXPIRE_LEASE: Final = text("UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = :id")


class World(Cluster):
    """The cluster, and the events that may happen to it."""

    # --- users -------------------------------------------------------------------------------------------

    async def request(
        self, send: Callable[[], Awaitable[Job]], fault: Fault | None, *, acceptable: bool | None
    ) -> None:
        """Send a request. ``acceptable``: whether it must be accepted, None if that is not predicted."""
        before, self.database.next_fault = self.now, fault
        accepted = None
        with suppress(CisternError):
            accepted = await send()
        await self.observe("request")
        if fault is None and acceptable is not None:
            assert (accepted is not None) == acceptable, f"accepted: {accepted and vars(accepted)}"
        if accepted is not None and accepted.status == "queued":
            assert received(accepted.message) in self.queue.messages
        if accepted is None and fault is not Fault.ANSWER_LOST:
            unchanged = replace(self.now, publications=0) == replace(before, publications=0)
            assert unchanged, "a refused request has changed something"

    # --- workers -----------------------------------------------------------------------------------------

    async def deliver(self, message: JobMessage, worker: SimulatedWorker, fault: Fault | None = None) -> None:
        """Deliver a message to a worker, which tries to claim the job."""
        before, stepped = self.now, SteppedTask(worker.runner.process(message), f"{message}")
        worker.stepped_tasks.append(stepped)
        await stepped.advance()
        await self.advance(stepped, fault)
        job = before.jobs[str(message.job_id)]
        if job["epoch"] != message.epoch or job["status"] != "queued":
            await self.finish(stepped)  # a second claim follows, because the row might only have been locked
            assert self.now == before, f"a stale message has changed something: {message}"

    async def advance(self, stepped: SteppedTask, fault: Fault | None = None, *, gate: int = 0) -> None:
        name = await stepped.advance(fault, gate=gate)
        if not name.endswith("done"):  # the return from a storage call changes no state
            await self.observe(stepped.outcome)

    async def finish(self, stepped: SteppedTask) -> None:
        while not stepped.ended:
            await self.advance(stepped)

    def suspend(self, worker: SimulatedWorker) -> None:
        """Let a worker do nothing from now on, and start another one in its place."""
        self.suspended += worker.active_tasks()
        self.workers[self.workers.index(worker)] = self._new_worker()

    async def shut_down(self, worker: SimulatedWorker) -> None:
        worker.runner.release_all()
        self.suspend(worker)  # its tasks may still hand back their jobs when they are resumed

    async def beat(self, worker: SimulatedWorker, fault: Fault | None) -> None:
        self.database.next_fault = fault
        with suppress(CisternError):
            await worker.heartbeat.beat()
        await self.observe("beat")

    # --- time and maintenance ----------------------------------------------------------------------------

    async def pass_time(self) -> None:
        """Make everything due, and every message old."""
        await self.observer.execute(_PASS_TIME)
        self.now = await WorldState.read(self.observer, self.driver)

    async def end_lease(self, job: Row, *, noticed: bool) -> None:
        """End a lease. ``noticed``: also by the worker's own clock; otherwise its process was suspended meanwhile."""
        await self.observer.execute(_EXPIRE_LEASE, {"id": job["id"]})
        for worker in self.workers if noticed else ():
            run = worker.runner.running.get(UUID(job["id"]))
            if run is not None and run.job.epoch == job["epoch"]:
                run.grant.extend(0.0)
        self.now = await WorldState.read(self.observer, self.driver)

    async def maintain(self, task: str, fault: Fault | None = None) -> None:
        """Run one maintenance task."""
        engine = self.workers[0].engine
        tasks: dict[str, Callable[[], Awaitable[int]]] = {
            "rescue": engine.maintenance.rescue,
            "assign_lanes": self.services.bulk.assign_lanes,
            "dispatch_due": engine.maintenance.dispatch_due,
            "redispatch_lost": engine.maintenance.redispatch_lost,
        }
        run = tasks[task]
        self.database.next_fault = fault
        with suppress(CisternError):
            await run()
        self.database.next_fault = None
        await self.observe(task)

    async def dispatch_everything(self) -> None:
        """Whatever Redis has lost, two maintenance tasks dispatch every queued job."""
        await self.pass_time()
        await self.maintain("dispatch_due")
        await self.maintain("redispatch_lost")
        queued = {
            JobMessage(UUID(job["id"]), job["epoch"], job["backend"])
            for job in self.now.live()
            if job["status"] == "queued"
        }
        assert queued <= self.queue.messages, "a queued job has no message"

    # --- the end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Suspend all workers and let one healthy worker continue: every job must end."""
        for worker in list(self.workers):
            self.suspend(worker)
        for _ in range(_MAX_ROUNDS):
            if not self.now.live():
                break
            for job in self.now.live():
                if job["lease_expires_at"] is not None:
                    await self.end_lease(job, noticed=False)
            await self.maintain("rescue")
            if any(job["kind"] in BULK_KINDS for job in self.now.live()):
                await self.maintain("assign_lanes")
            await self.dispatch_everything()
            await self._handle_all_messages()
        assert not self.now.live(), f"accepted jobs that never ended: {self.now.live()}"

    async def _handle_all_messages(self) -> None:
        """Handle all messages, and those that are sent meanwhile."""
        for _ in range(_MAX_ROUNDS):
            for message in sorted(self.queue.messages, key=lambda message: message[:2]):
                self.queue.messages.discard(message)
                await self.deliver(message, self.workers[0])
                for stepped in self.workers[0].active_tasks():
                    await self.finish(stepped)

    async def resume_all(self) -> None:
        """Resume all suspended tasks: they must not change anything."""
        before = self._sealed_part(self.now)
        for stepped in self.suspended:
            while not stepped.ended:
                await self.advance(stepped)
                assert self._sealed_part(self.now) == before, "a resumed worker has changed something"
        self.suspended = []

    async def cancel_all(self) -> None:
        """Cancel all tasks that are left."""
        active = [stepped for worker in self.workers for stepped in worker.stepped_tasks]
        for stepped in [*self.suspended, *active]:
            stepped.task.cancel()
            with suppress(BaseException):
                await stepped.task


def choose(items: list[Any], number: int) -> Any:
    """Return one of the items."""
    return items[number % len(items)]
