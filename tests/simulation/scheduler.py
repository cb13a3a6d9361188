"""Runs a worker's handling of one message step by step: it stops before each transaction and around each storage call.

A task continues only when the scheduler lets it, so a state machine can interleave the steps of many workers in any
order. A task that is never continued is a worker that was killed, or suspended, at that point.
"""

import asyncio
import enum
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, Final

from domain.jobs.attempt import Outcome

#: Number of event loop iterations without a change after which a task counts as blocked.
_IDLE_ITERATIONS: Final = 12


class Fault(enum.Enum):
    """A fault injected into one step."""

    COMMIT_LOST = "the connection is lost before the commit"
    ANSWER_LOST = "the commit takes effect, but its answer is lost"
    TRANSIENT = "the storage fails with a transient error"
    PERMANENT = "the storage fails with a permanent error"
    BUSY = "another process holds the storage's lock"


class Gate:
    """A point at which a stepped task waits until the scheduler opens it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()


class SteppedTask:
    """The handling of one message, in its own task."""

    def __init__(self, handling: Coroutine[Any, Any, None], name: str) -> None:
        self.name = name
        self.gates: list[Gate] = []
        self.open_transactions = 0
        self.outcome: Outcome | None = None
        context = copy_context()
        context.run(_current.set, self)
        self.task = asyncio.get_running_loop().create_task(handling, context=context)

    async def advance(self, fault: Fault | None = None, *, gate: int = 0) -> str:
        """Open one gate, if there is any, and run until the task is blocked again; return the name of the step."""
        name = "begun"
        if self.gates:
            chosen = self.gates.pop(gate % len(self.gates))
            chosen.opened.set_result(fault)
            name = chosen.name
        await self._run_until_blocked()
        return name

    @property
    def ended(self) -> bool:
        return self.task.done()

    async def _run_until_blocked(self) -> None:
        unchanged, gates = 0, len(self.gates)
        while unchanged < _IDLE_ITERATIONS:
            await asyncio.sleep(0)
            blocked = self.task.done() or (self.gates and not self.open_transactions)
            unchanged = unchanged + 1 if blocked and len(self.gates) == gates else 0
            gates = len(self.gates)
        if self.task.done() and not self.task.cancelled():
            self.task.result()  # a bug in the product fails the test here


_current: ContextVar[SteppedTask | None] = ContextVar("current_stepped_task", default=None)


def current_stepped_task() -> SteppedTask | None:
    """Return the stepped task that is running, None outside of stepped tasks."""
    return _current.get()


async def step(name: str) -> Fault | None:
    """Wait for the scheduler and return the fault for this step. Outside of stepped tasks, return at once."""
    stepped = current_stepped_task()
    if stepped is None:
        return None
    gate = Gate(name)
    stepped.gates.append(gate)
    return await gate.opened
