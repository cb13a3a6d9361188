"""A worker's answer to one message, stopped before each transaction and around each piece of storage work.

It moves on only when it is told to, so a machine can put the steps of many workers into any order. One that is never
told to is a worker that was killed, or stopped, there.
"""

import asyncio
import enum
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, Final

from domain.jobs.outcomes import Outcome

#: So many turns of the event loop without a change mean that nothing moves by itself.
_STILL: Final = 12


class Accident(enum.Enum):
    """What befalls a step."""

    COMMIT_LOST = "the connection is lost before the commit"
    ANSWER_LOST = "the commit took effect, and nobody hears of it"
    TRANSIENT = "the storage fails in a way that may pass"
    PERMANENT = "the storage fails for good"
    BUSY = "somebody holds the storage's lock"


class Gate:
    """A place where a puppet waits to be told to go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: asyncio.Future[Accident | None] = asyncio.get_running_loop().create_future()


class SteppedTask:
    """One answer to one message, in a task of its own."""

    def __init__(self, answer: Coroutine[Any, Any, None], name: str) -> None:
        self.name = name
        self.gates: list[Gate] = []
        #: Transactions that are going on at the moment.
        self.busy = 0
        self.outcome: Outcome | None = None
        context = copy_context()
        context.run(_present.set, self)
        self.task = asyncio.get_running_loop().create_task(answer, context=context)

    async def go_on(self, accident: Accident | None = None, *, gate: int = 0) -> str:
        """Take one step, if there is one left to take; returns its name."""
        name = "begun"
        if self.gates:
            chosen = self.gates.pop(gate % len(self.gates))
            chosen.opened.set_result(accident)
            name = chosen.name
        await self._come_to_rest()
        return name

    @property
    def ended(self) -> bool:
        return self.task.done()

    async def _come_to_rest(self) -> None:
        still, before = 0, len(self.gates)
        while still < _STILL:
            await asyncio.sleep(0)
            rests = self.task.done() or (self.gates and not self.busy)
            still = still + 1 if rests and len(self.gates) == before else 0
            before = len(self.gates)
        if self.task.done() and not self.task.cancelled():
            self.task.result()  # a bug in the product is a failure here


_present: ContextVar[SteppedTask | None] = ContextVar("present_puppet", default=None)


def present() -> SteppedTask | None:
    """The puppet in whose task this is asked; None for whoever is no puppet."""
    return _present.get()


async def pause(name: str) -> Accident | None:
    """Wait to be told to go on, and hear what is to befall this step. Whoever is no puppet goes on at once."""
    stepped = present()
    if stepped is None:
        return None
    gate = Gate(name)
    stepped.gates.append(gate)
    return await gate.opened
