"""Those who wait for a job are woken by an announcement, by a look into PostgreSQL, or by the time."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from fakeredis import FakeServer
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import Database
from domain.jobs import watcher as watcher_module
from domain.jobs.queue import JobQueue
from domain.jobs.repository import JobRepository
from domain.jobs.watcher import Watcher
from tests.unit.worker_fakes import fake_redis, until


class Book(Database):
    """Tells which jobs have ended, and counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: set[UUID] = set()
        self.asked = 0

        async def ended_among(_: JobRepository, job_ids: Collection[UUID]) -> Sequence[UUID]:
            self.asked += 1
            return [job_id for job_id in job_ids if job_id in self.ended]

        monkeypatch.setattr(JobRepository, "ended_among", ended_among)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        yield AsyncSession()


def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 3600)


async def announced(server: FakeServer, job_id: UUID) -> None:
    """Say once that a job has changed, when somebody listens."""
    await until(lambda: any(server.subscribers.values()))
    await JobQueue(fake_redis(server)).announce(job_id)


async def test_what_has_ended_already_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    book, job_id = Book(monkeypatch), uuid4()
    book.ended = {job_id}
    watcher = Watcher(book, JobQueue(fake_redis()))
    async with asyncio.timeout(5), watcher.watching():
        await watcher.ended(job_id, 3600)


async def test_an_announcement_wakes_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    server, book, job_id = FakeServer(), Book(monkeypatch), uuid4()
    watcher = Watcher(book, JobQueue(fake_redis(server)))
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job_id, 3600))
        await until(lambda: book.asked == 1)
        book.ended = {job_id}
        await announced(server, job_id)
        async with asyncio.timeout(5):
            await waiting


async def test_an_announcement_of_something_less_than_the_end_wakes_nobody_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never_looks(monkeypatch)
    server, book, job_id = FakeServer(), Book(monkeypatch), uuid4()
    watcher = Watcher(book, JobQueue(fake_redis(server)))
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job_id, 3600))
        for looks in (1, 2, 3):
            await until(lambda looks=looks: book.asked == looks)  # type: ignore[misc]
            await announced(server, job_id)
        await until(lambda: book.asked == 4)
        assert not waiting.done()
        book.ended = {job_id}
        await announced(server, job_id)
        async with asyncio.timeout(5):
            await waiting


async def test_when_redis_is_silent_a_look_wakes_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0.001)
    server, book, job_id = FakeServer(), Book(monkeypatch), uuid4()
    server.connected = False
    watcher = Watcher(book, JobQueue(fake_redis(server)))
    async with watcher.watching(), asyncio.timeout(5):
        waiting = asyncio.create_task(watcher.ended(job_id, 3600))
        await until(lambda: book.asked > 1)
        book.ended = {job_id}
        await waiting


async def test_whoever_has_waited_long_enough_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    watcher = Watcher(Book(monkeypatch), JobQueue(fake_redis()))
    began = time.monotonic()
    async with watcher.watching():
        await watcher.ended(uuid4(), 0.05)

    assert 0.05 <= time.monotonic() - began < 5


async def test_a_thousand_who_wait_for_one_job_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0.05)
    book, job_id = Book(monkeypatch), uuid4()
    watcher = Watcher(book, JobQueue(fake_redis()))
    async with watcher.watching():
        waiting = [asyncio.create_task(watcher.ended(job_id, 3600)) for _ in range(1000)]
        await until(lambda: book.asked >= 1000)
        before = book.asked
        book.ended = {job_id}
        await asyncio.gather(*waiting)

    assert book.asked - before <= 1000 + 2  # one look for all, and each one's own when it is woken


async def test_nothing_is_kept_of_those_who_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    watcher = Watcher(Book(monkeypatch), JobQueue(fake_redis()))
    gave_up = asyncio.create_task(watcher.ended(uuid4(), 3600))
    await until(lambda: bool(watcher._waiting))
    gave_up.cancel()
    await asyncio.gather(gave_up, return_exceptions=True)
    await watcher.ended(uuid4(), 0)

    assert not watcher._waiting


async def test_while_nobody_waits_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0)
    book = Book(monkeypatch)
    async with Watcher(book, JobQueue(fake_redis())).watching():
        for _ in range(100):
            await asyncio.sleep(0)

    assert book.asked == 0


async def test_everybody_is_released_at_once_and_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    watcher = Watcher(Book(monkeypatch), JobQueue(fake_redis()))
    waiting = [asyncio.create_task(watcher.ended(uuid4(), 3600)) for _ in range(3)]
    await until(lambda: len(watcher._waiting) == 3)
    watcher.release()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
        await watcher.ended(uuid4(), 3600)

    assert watcher._waiting == {}
