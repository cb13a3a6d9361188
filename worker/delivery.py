"""arq's worker, as we need it: one that does not take a Redis which refuses writes for one in which nothing happens."""

from typing import Any, Final

from arq.worker import Worker

from domain.jobs.queue import WRITTEN
from worker.runner import Runner

#: How long arq keeps a message from others that was delivered here, until the row is claimed. If we die in between it
#: is lost time; if it runs out too early, two claims meet, of which one gets the row.
_DELIVERY_SECONDS: Final = 3.0


class Delivery(Worker):
    """Delivers messages to a runner, until Redis fails or refuses."""

    def __init__(self, runner: Runner, settings: dict[str, Any]) -> None:
        super().__init__(**settings, handle_signals=False, ctx={"runner": runner})
        self.in_progress_timeout_s = _DELIVERY_SECONDS

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start what was rung, or raise what keeps us from it.

        arq takes every answer to its claim but "yes" for somebody else's claim. That is rare enough to look after it.
        """
        before = len(self.tasks)
        await super().start_jobs(job_ids)
        if job_ids and len(self.tasks) == before:
            await self.pool.set(WRITTEN, b"", px=1000)
