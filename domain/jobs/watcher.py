"""Waiting for jobs: one watcher per process serves all clients that wait for the end of a job or follow its changes.

Workers announce changes through Redis; a shared poll of PostgreSQL once per second covers lost announcements. Each
query serves all watched jobs, so a thousand clients cost as much as one.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final
from uuid import UUID

import structlog

from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue, QueueUnavailable
from domain.tasks import in_background

_POLL_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


async def _never() -> None:
    await asyncio.Event().wait()


class _Watch:
    """One client's watch of a job. ``update`` is the latest state that the client has not consumed yet."""

    def __init__(self, version: int | None) -> None:
        self.version = version
        self.update: Job | None = None
        self.is_over = False
        self.is_released = False
        self.changed = asyncio.Event()

    def notify(self, job: Job | None) -> None:
        """Store the current state of the job; it replaces an update that was not consumed."""
        self.is_over = job is None or job.ended
        if job is not None and job.version != self.version:
            self.version, self.update = job.version, job
            self.changed.set()
        if self.is_over:
            self.changed.set()

    def pop_update(self) -> Job | None:
        """Return the pending update, if any, and clear it."""
        update, self.update = self.update, None
        return update


class Watcher:
    """Lets clients wait for jobs and follow them."""

    def __init__(self, database: Database, queue: JobQueue) -> None:
        self._database = database
        self._queue = queue
        self._watched: defaultdict[UUID, set[_Watch]] = defaultdict(set)
        #: Jobs to be read again, and the event that signals that there are any.
        self._due: set[UUID] = set()
        self._is_due = asyncio.Event()
        self._released = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Receive announcements and poll, in the background, while the block runs."""
        async with in_background(self._listen(), self._poll(), self._check_when_due()):
            yield

    async def ended(self, job_id: UUID, seconds: float) -> None:
        """Wait until the job has ended or is gone, for at most ``seconds``, or until `release`.

        The caller must read the job itself.
        """
        with self._watch(job_id, None) as watch, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._released or watch.is_over):
                    await watch.changed.wait()
                    watch.changed.clear()

    async def follow(
        self, job_id: UUID, version: int | None, *, end: Callable[[], Awaitable[None]] = _never
    ) -> AsyncGenerator[Job, None]:
        """Yield each new state of a job, except the one at ``version``, until it has ended or is gone.

        End when ``end()`` has ended and with `release`, too. A slow client may miss intermediate states, but never the
        latest one.
        """
        with self._watch(job_id, version) as watch:
            async with in_background(self._release_after(watch, end)):
                while not (self._released or watch.is_released):
                    await watch.changed.wait()
                    watch.changed.clear()
                    update, is_over = watch.pop_update(), watch.is_over  # both may change during the yield
                    if update is not None:
                        yield update
                    if is_over:
                        return

    @staticmethod
    async def _release_after(watch: _Watch, end: Callable[[], Awaitable[None]]) -> None:
        await end()
        watch.is_released = True
        watch.changed.set()

    def release(self) -> None:
        """End all waits, and let none begin: the process is shutting down."""
        self._released = True
        for watches in self._watched.values():
            for watch in watches:
                watch.changed.set()

    @contextmanager
    def _watch(self, job_id: UUID, version: int | None) -> Iterator[_Watch]:
        watch = _Watch(version)
        self._watched[job_id].add(watch)
        self._check_soon(job_id)  # it may have changed since the client last read it
        try:
            yield watch
        finally:
            self._watched[job_id].discard(watch)
            if not self._watched[job_id]:
                del self._watched[job_id]

    def _check_soon(self, *job_ids: UUID) -> None:
        self._due.update(job_id for job_id in job_ids if job_id in self._watched)
        if self._due:
            self._is_due.set()

    async def _listen(self) -> None:
        while True:
            with suppress(QueueUnavailable):
                async for job_id in self._queue.announcements():
                    self._check_soon(job_id)
            await asyncio.sleep(_POLL_SECONDS)

    async def _poll(self) -> None:
        """Find changes whose announcement was lost."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self._watched:
                with self._errors_logged():
                    self._check_soon(*self._changed(await self._versions()))

    async def _check_when_due(self) -> None:
        """Read the jobs that are due; those announced during a query are part of the next one."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            due, self._due = self._due, set()
            with self._errors_logged():
                await self._check(due)

    async def _check(self, job_ids: set[UUID]) -> None:
        async with self._database.transaction() as session:
            jobs = {job.id: job for job in await JobRepository(session).get_many(job_ids)}
        for job_id in job_ids & self._watched.keys():
            for watch in self._watched[job_id]:
                watch.notify(jobs.get(job_id))

    async def _versions(self) -> Mapping[UUID, int]:
        async with self._database.transaction() as session:
            return await JobRepository(session).versions(tuple(self._watched))

    def _changed(self, versions: Mapping[UUID, int]) -> list[UUID]:
        known = ((job_id, watch.version) for job_id, watches in self._watched.items() for watch in watches)
        return [job_id for job_id, version in known if version != versions.get(job_id)]

    @contextmanager
    def _errors_logged(self) -> Iterator[None]:
        """Log any error and go on: the clients depend on the next query."""
        try:
            yield
        except DatabaseUnavailable:
            log.debug("watcher.database_unavailable")
        except Exception:
            log.exception("watcher.failed")
