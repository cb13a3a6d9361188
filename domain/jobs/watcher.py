"""Waiting for a job to end: one watcher per process serves everybody who waits.

Workers announce changes through Redis; one shared look into PostgreSQL a second covers its silence.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final
from uuid import UUID

import structlog

from domain.background import in_background
from domain.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs.queue import JobQueue, QueueUnavailable
from domain.jobs.repository import JobRepository

_POLL_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class Watcher:
    """Wakes those who wait for a job."""

    def __init__(self, database: Database, queue: JobQueue) -> None:
        self._database = database
        self._queue = queue
        self._waiting: defaultdict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._released = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Listen and look, in the background, as long as the block lasts."""
        async with in_background(self._listen(), self._look()):
            yield

    async def ended(self, job_id: UUID, seconds: float) -> None:
        """Come back when the job has ended or is gone, after ``seconds``, or when everybody is released.

        Whoever asked looks for himself.
        """
        with self._registered(job_id) as changed, suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._released and not await self._has_ended(job_id):
                    await changed.wait()
                    changed.clear()  # before the next look: what is announced during it must not be missed

    def release(self) -> None:
        """Let everybody go who waits, and nobody wait any more: the process is to end."""
        self._released = True
        for job_id in self._waiting:
            self._wake(job_id)

    @contextmanager
    def _registered(self, job_id: UUID) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._waiting[job_id].add(changed)
        try:
            yield changed
        finally:
            self._waiting[job_id].discard(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _has_ended(self, job_id: UUID) -> bool:
        async with self._database.transaction() as session:
            return bool(await JobRepository(session).ended_among([job_id]))

    async def _listen(self) -> None:
        while True:
            with suppress(QueueUnavailable):
                async for job_id in self._queue.announcements():
                    self._wake(job_id)
            await asyncio.sleep(_POLL_SECONDS)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if not self._waiting:
                continue
            try:
                async with self._database.transaction() as session:
                    ended = await JobRepository(session).ended_among(tuple(self._waiting))
            except DatabaseUnavailable:
                continue
            except Exception:
                log.exception("watcher.crashed")  # whoever waits must not wait in vain for the next look
                continue
            for job_id in ended:
                self._wake(job_id)

    def _wake(self, job_id: UUID) -> None:
        for changed in self._waiting.get(job_id, ()):
            changed.set()
