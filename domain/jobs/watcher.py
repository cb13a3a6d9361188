"""Waiting for jobs: one watcher per process serves everybody who waits for an end, or follows every change.

Workers announce changes through Redis; one shared look into PostgreSQL a second covers its silence. Whatever is looked
up is looked up once for all who watch, so a thousand of them cost as much as one.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
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


class _Watch:
    """What one of those who watch knows of a job; its ``news`` are what has not been taken yet."""

    def __init__(self, version: int | None) -> None:
        self.version = version
        self.news: Job | None = None
        self.is_over = False
        self.changed = asyncio.Event()

    def notify(self, job: Job | None) -> None:
        """Take note of a job as it is now; only the latest state matters."""
        self.is_over = job is None or job.ended
        if job is not None and job.version != self.version:
            self.version, self.news = job.version, job
            self.changed.set()
        if self.is_over:
            self.changed.set()

    def next(self) -> Job | None:
        """Take the news, which are none any more then."""
        news, self.news = self.news, None
        return news


class Watcher:
    """Shows jobs to those who wait for them."""

    def __init__(self, database: Database, queue: JobQueue) -> None:
        self._database = database
        self._queue = queue
        self._watched: defaultdict[UUID, set[_Watch]] = defaultdict(set)
        #: Jobs that somebody should look at, and the bell for it.
        self._due: set[UUID] = set()
        self._is_due = asyncio.Event()
        self._released = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Listen and look, in the background, as long as the block lasts."""
        async with in_background(self._listen(), self._poll(), self._check_when_due()):
            yield

    async def ended(self, job_id: UUID, seconds: float) -> None:
        """Come back when the job has ended or is gone, after ``seconds``, or when everybody is released.

        Whoever asked looks for himself.
        """
        with self._watch(job_id, None) as watch, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._released or watch.is_over):
                    await watch.changed.wait()
                    watch.changed.clear()

    async def follow(self, job_id: UUID, version: int | None) -> AsyncGenerator[Job, None]:
        """Show every state of a job but the one at ``version``, until it has ended or is gone, or all are released.

        A follower who is slow misses what has passed meanwhile, never what is.
        """
        with self._watch(job_id, version) as watch:
            while not self._released:
                await watch.changed.wait()
                watch.changed.clear()
                news, is_over = watch.next(), watch.is_over  # both now: while the follower is busy they go on changing
                if news is not None:
                    yield news
                if is_over:
                    return

    def release(self) -> None:
        """Let everybody go who waits, and nobody wait any more: the process is to end."""
        self._released = True
        for watches in self._watched.values():
            for watch in watches:
                watch.changed.set()

    @contextmanager
    def _watch(self, job_id: UUID, version: int | None) -> Iterator[_Watch]:
        watch = _Watch(version)
        self._watched[job_id].add(watch)
        self._poll_soon(job_id)  # it may have changed since whoever asks has seen it
        try:
            yield watch
        finally:
            self._watched[job_id].discard(watch)
            if not self._watched[job_id]:
                del self._watched[job_id]

    def _poll_soon(self, *job_ids: UUID) -> None:
        self._due.update(job_id for job_id in job_ids if job_id in self._watched)
        if self._due:
            self._is_due.set()

    async def _listen(self) -> None:
        while True:
            with suppress(QueueUnavailable):
                async for job_id in self._queue.announcements():
                    self._poll_soon(job_id)
            await asyncio.sleep(_POLL_SECONDS)

    async def _poll(self) -> None:
        """Find what has changed although nobody said so."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self._watched:
                with self._errors_logged():
                    self._poll_soon(*self._changed(await self._versions()))

    async def _check_when_due(self) -> None:
        """Look at what was announced; whatever is announced during a look is part of the next one."""
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
        seen = ((job_id, watch.version) for job_id, watches in self._watched.items() for watch in watches)
        return [job_id for job_id, version in seen if version != versions.get(job_id)]

    @contextmanager
    def _errors_logged(self) -> Iterator[None]:
        """Whatever goes wrong, whoever waits must not wait in vain for the next look."""
        try:
            yield
        except DatabaseUnavailable:
            log.debug("watcher.database_unavailable")
        except Exception:
            log.exception("watcher.failed")
