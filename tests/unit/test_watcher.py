"""Clients that watch a job get its changes after an announcement or a poll of PostgreSQL, which all of them share."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import pytest
from fakeredis import FakeServer
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs import watcher as watcher_module
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.watcher import Watcher
from tests.unit.fake_volumes import NOON, job_row
from tests.unit.worker_fakes import fake_redis, until


class JobTable(Database):
    """A job table in memory that counts its queries, and can be unavailable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[UUID, Job] = {}
        self.queries = 0
        self.is_up = True

        async def get_many(_: JobRepository, job_ids: Collection[UUID]) -> Sequence[Job]:
            self.queries += 1
            return [self.rows[job_id] for job_id in job_ids if job_id in self.rows]

        async def versions(_: JobRepository, job_ids: Collection[UUID]) -> dict[UUID, int]:
            self.queries += 1
            return {job_id: self.rows[job_id].version for job_id in job_ids if job_id in self.rows}

        monkeypatch.setattr(JobRepository, "get_many", get_many)
        monkeypatch.setattr(JobRepository, "versions", versions)

    def add(self) -> Job:
        job = job_row()
        self.rows[job.id] = job
        return job

    def change(self, job: Job, status: JobStatus = JobStatus.RUNNING) -> None:
        """Store a changed copy: as with PostgreSQL, an object that was read before does not change."""
        changed = job_row(status=status, finished_at=NOON if status is JobStatus.SUCCEEDED else None)
        changed.id, changed.version = job.id, self.rows[job.id].version + 1
        self.rows[job.id] = changed

    def end(self, job: Job) -> None:
        self.change(job, JobStatus.SUCCEEDED)

    @asynccontextmanager
    async def transaction(
        self, *, statement_seconds: float | None = None, reserved: bool = False
    ) -> AsyncIterator[AsyncSession]:
        if not self.is_up:
            self.queries += 1
            raise DatabaseUnavailable
        yield AsyncSession()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> JobTable:
    return JobTable(monkeypatch)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def watcher(table: JobTable, server: FakeServer) -> Watcher:
    return Watcher(table, JobQueue(fake_redis(server)))


@pytest.fixture
def announce(server: FakeServer) -> Callable[[Job], Awaitable[None]]:
    """Announce that a job has changed, once the watcher has subscribed."""

    async def announce(job: Job) -> None:
        await until(lambda: any(server.subscribers.values()))
        await JobQueue(fake_redis(server)).announce(job.id)

    return announce


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 3600)


@pytest.fixture
def polls_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0.001)


async def follow(watcher: Watcher, job: Job, version: int | None, versions: list[int]) -> None:
    """Follow a job to its end, and append the versions that were yielded."""
    async with aclosing(watcher.follow(job.id, version)) as following:
        async for state in following:
            versions += [state.version]


# --- waiting for the end -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_polls")
async def test_waiting_for_an_ended_job_returns_at_once(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    table.end(job)
    async with asyncio.timeout(5), watcher.watching():
        await watcher.ended(job.id, 3600)


@pytest.mark.usefixtures("never_polls")
async def test_waiting_for_a_missing_job_returns_at_once(watcher: Watcher) -> None:
    async with asyncio.timeout(5), watcher.watching():
        await watcher.ended(uuid4(), 3600)


@pytest.mark.usefixtures("never_polls")
async def test_announcement_of_the_end_wakes_a_waiting_client(
    table: JobTable, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job = table.add()
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: table.queries == 1)
        table.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await waiting


@pytest.mark.usefixtures("never_polls")
async def test_announcement_of_another_change_does_not_end_the_wait(
    table: JobTable, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job = table.add()
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        for queries in (1, 2, 3):
            await until(lambda queries=queries: table.queries == queries)  # type: ignore[misc]
            table.change(job)
            await announce(job)
        await until(lambda: table.queries == 4)
        assert not waiting.done()
        table.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await waiting


@pytest.mark.usefixtures("polls_often")
async def test_poll_wakes_a_waiting_client_without_redis(table: JobTable, watcher: Watcher, server: FakeServer) -> None:
    server.connected = False
    job = table.add()
    async with watcher.watching(), asyncio.timeout(5):
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: table.queries > 1)
        table.end(job)
        await waiting


@pytest.mark.usefixtures("polls_often")
async def test_wait_survives_an_outage_of_postgresql(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    table.is_up = False
    async with watcher.watching(), asyncio.timeout(5):
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: table.queries > 2)
        table.is_up = True
        table.end(job)
        await waiting


@pytest.mark.usefixtures("never_polls")
async def test_wait_ends_after_its_timeout(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    began = time.monotonic()
    async with watcher.watching():
        await watcher.ended(job.id, 0.05)

    assert 0.05 <= time.monotonic() - began < 5


@pytest.mark.usefixtures("never_polls")
async def test_watches_of_disconnected_clients_are_removed(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    gave_up = asyncio.create_task(watcher.ended(job.id, 3600))
    await until(lambda: bool(watcher._watched))
    gave_up.cancel()
    await asyncio.gather(gave_up, return_exceptions=True)
    await watcher.ended(job.id, 0)

    assert not watcher._watched


async def test_watcher_does_not_query_without_clients(
    table: JobTable, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0)
    async with watcher.watching():
        for _ in range(100):
            await asyncio.sleep(0)

    assert table.queries == 0


@pytest.mark.usefixtures("never_polls")
async def test_release_ends_all_waits_and_lets_none_begin(table: JobTable, watcher: Watcher) -> None:
    waiting = [asyncio.create_task(watcher.ended(table.add().id, 3600)) for _ in range(3)]
    following = [asyncio.create_task(follow(watcher, table.add(), None, [])) for _ in range(3)]
    await until(lambda: len(watcher._watched) == 6)
    watcher.release()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting, *following)
        await watcher.ended(table.add().id, 3600)
        await follow(watcher, table.add(), None, [])

    assert watcher._watched == {}


# --- following every change ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_polls")
async def test_follower_gets_every_change_until_the_end(
    table: JobTable, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job, versions = table.add(), list[int]()
    async with watcher.watching():
        following = asyncio.create_task(follow(watcher, job, None, versions))
        await until(lambda: versions == [1])
        table.change(job)
        await announce(job)
        await until(lambda: versions == [1, 2])
        table.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await following

    assert versions == [1, 2, 3]


@pytest.mark.usefixtures("polls_often")
async def test_follower_continues_after_its_known_version(table: JobTable, watcher: Watcher) -> None:
    job, versions = table.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5):
        following = asyncio.create_task(follow(watcher, job, 1, versions))
        await until(lambda: table.queries > 3)
        table.end(job)
        await following

    assert versions == [2]


@pytest.mark.usefixtures("never_polls")
async def test_follower_that_knows_the_end_gets_nothing(table: JobTable, watcher: Watcher) -> None:
    job, versions = table.add(), list[int]()
    table.end(job)
    async with watcher.watching(), asyncio.timeout(5):
        await follow(watcher, job, 2, versions)

    assert versions == []


@pytest.mark.usefixtures("polls_often")
async def test_slow_follower_gets_only_the_latest_state(table: JobTable, watcher: Watcher) -> None:
    job, versions = table.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5), aclosing(watcher.follow(job.id, None)) as following:
        versions.append((await anext(following)).version)
        for _ in range(5):
            table.change(job)
            before = table.queries
            await until(lambda before=before: table.queries > before + 3)  # type: ignore[misc]
        versions.append((await anext(following)).version)

    assert versions == [1, 6]


@pytest.mark.usefixtures("polls_often")
async def test_follower_busy_during_the_end_still_gets_it(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    async with watcher.watching(), asyncio.timeout(5), aclosing(watcher.follow(job.id, None)) as following:
        await anext(following)
        table.end(job)
        before = table.queries
        await until(lambda: table.queries > before + 3)
        assert [state.status async for state in following] == [JobStatus.SUCCEEDED]


@pytest.mark.usefixtures("polls_often")
async def test_following_ends_when_the_job_is_gone(table: JobTable, watcher: Watcher) -> None:
    job, versions = table.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5):
        following = asyncio.create_task(follow(watcher, job, None, versions))
        await until(lambda: versions == [1])
        del table.rows[job.id]
        await following


@pytest.mark.usefixtures("never_polls")
async def test_one_query_serves_a_thousand_followers_of_a_thousand_jobs(
    table: JobTable, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, versions = [table.add() for _ in range(1000)], [list[int]() for _ in range(1000)]
    async with watcher.watching():
        following = [
            asyncio.create_task(follow(watcher, job, None, shown)) for job, shown in zip(jobs, versions, strict=True)
        ]
        await until(lambda: all(versions))
        first = table.queries
        monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0.05)
        for job in jobs:
            table.end(job)
        watcher._check_soon(*(job.id for job in jobs))
        async with asyncio.timeout(5):
            await asyncio.gather(*following)

    assert versions == [[1, 2]] * 1000
    assert (first, table.queries) == (1, 2)


@pytest.mark.usefixtures("never_polls")
async def test_following_ends_after_the_given_time(table: JobTable, watcher: Watcher) -> None:
    job = table.add()
    async with (
        watcher.watching(),
        asyncio.timeout(5),
        aclosing(watcher.follow(job.id, None, end=partial(asyncio.sleep, 0.05))) as following,
    ):
        assert [state.version async for state in following] == [1]

    assert watcher._watched == {}
