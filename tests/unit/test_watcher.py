"""Those who watch a job are shown it after an announcement, or a look into PostgreSQL; all of them by the same look."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
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


class Expectations(Database):
    """A job book in memory that counts how often it was asked, and can be away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[UUID, Job] = {}
        self.asked = 0
        self.is_up = True

        async def some(_: JobRepository, job_ids: Collection[UUID]) -> Sequence[Job]:
            self.asked += 1
            return [self.rows[job_id] for job_id in job_ids if job_id in self.rows]

        async def versions(_: JobRepository, job_ids: Collection[UUID]) -> dict[UUID, int]:
            self.asked += 1
            return {job_id: self.rows[job_id].version for job_id in job_ids if job_id in self.rows}

        monkeypatch.setattr(JobRepository, "get_many", some)
        monkeypatch.setattr(JobRepository, "versions", versions)

    def add(self) -> Job:
        job = job_row()
        self.rows[job.id] = job
        return job

    def change(self, job: Job, status: JobStatus = JobStatus.RUNNING) -> None:
        """Write a job down anew, as PostgreSQL would: nobody sees the same object change."""
        later = job_row(status=status, finished_at=NOON if status is JobStatus.SUCCEEDED else None)
        later.id, later.version = job.id, self.rows[job.id].version + 1
        self.rows[job.id] = later

    def end(self, job: Job) -> None:
        self.change(job, JobStatus.SUCCEEDED)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        if not self.is_up:
            self.asked += 1
            raise DatabaseUnavailable
        yield AsyncSession()


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Expectations:
    return Expectations(monkeypatch)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def watcher(expected: Expectations, server: FakeServer) -> Watcher:
    return Watcher(expected, JobQueue(fake_redis(server)))


@pytest.fixture
def announce(server: FakeServer) -> Callable[[Job], Awaitable[None]]:
    """Say that a job has changed, as soon as somebody listens."""

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


async def seen(watcher: Watcher, job: Job, version: int | None, states: list[int]) -> None:
    """Follow a job to its end, and note the versions that were shown."""
    async with aclosing(watcher.follow(job.id, version)) as following:
        async for state in following:
            states += [state.version]


# --- waiting for the end -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_polls")
async def test_what_has_ended_already_is_not_waited_for(expected: Expectations, watcher: Watcher) -> None:
    job = expected.add()
    expected.end(job)
    async with asyncio.timeout(5), watcher.watching():
        await watcher.ended(job.id, 3600)


@pytest.mark.usefixtures("never_polls")
async def test_what_is_gone_is_not_waited_for(watcher: Watcher) -> None:
    async with asyncio.timeout(5), watcher.watching():
        await watcher.ended(uuid4(), 3600)


@pytest.mark.usefixtures("never_polls")
async def test_an_announcement_wakes_whoever_waits(
    expected: Expectations, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job = expected.add()
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: expected.asked == 1)
        expected.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await waiting


@pytest.mark.usefixtures("never_polls")
async def test_an_announcement_of_something_less_than_the_end_wakes_nobody_for_good(
    expected: Expectations, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job = expected.add()
    async with watcher.watching():
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        for looks in (1, 2, 3):
            await until(lambda looks=looks: expected.asked == looks)  # type: ignore[misc]
            expected.change(job)
            await announce(job)
        await until(lambda: expected.asked == 4)
        assert not waiting.done()
        expected.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await waiting


@pytest.mark.usefixtures("polls_often")
async def test_when_redis_is_silent_a_look_wakes_whoever_waits(
    expected: Expectations, watcher: Watcher, server: FakeServer
) -> None:
    server.connected = False
    job = expected.add()
    async with watcher.watching(), asyncio.timeout(5):
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: expected.asked > 1)
        expected.end(job)
        await waiting


@pytest.mark.usefixtures("polls_often")
async def test_whoever_waits_survives_that_postgresql_is_away(expected: Expectations, watcher: Watcher) -> None:
    job = expected.add()
    expected.is_up = False
    async with watcher.watching(), asyncio.timeout(5):
        waiting = asyncio.create_task(watcher.ended(job.id, 3600))
        await until(lambda: expected.asked > 2)
        expected.is_up = True
        expected.end(job)
        await waiting


@pytest.mark.usefixtures("never_polls")
async def test_whoever_has_waited_long_enough_is_let_go(expected: Expectations, watcher: Watcher) -> None:
    job = expected.add()
    began = time.monotonic()
    async with watcher.watching():
        await watcher.ended(job.id, 0.05)

    assert 0.05 <= time.monotonic() - began < 5


@pytest.mark.usefixtures("never_polls")
async def test_nothing_is_kept_of_those_who_have_gone(expected: Expectations, watcher: Watcher) -> None:
    job = expected.add()
    gave_up = asyncio.create_task(watcher.ended(job.id, 3600))
    await until(lambda: bool(watcher._watched))
    gave_up.cancel()
    await asyncio.gather(gave_up, return_exceptions=True)
    await watcher.ended(job.id, 0)

    assert not watcher._watched


async def test_while_nobody_waits_nobody_looks(
    expected: Expectations, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0)
    async with watcher.watching():
        for _ in range(100):
            await asyncio.sleep(0)

    assert expected.asked == 0


@pytest.mark.usefixtures("never_polls")
async def test_everybody_is_released_at_once_and_nobody_waits_any_more(
    expected: Expectations, watcher: Watcher
) -> None:
    waiting = [asyncio.create_task(watcher.ended(expected.add().id, 3600)) for _ in range(3)]
    following = [asyncio.create_task(seen(watcher, expected.add(), None, [])) for _ in range(3)]
    await until(lambda: len(watcher._watched) == 6)
    watcher.release()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting, *following)
        await watcher.ended(expected.add().id, 3600)
        await seen(watcher, expected.add(), None, [])

    assert watcher._watched == {}


# --- following every change ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_polls")
async def test_a_follower_is_shown_every_change_until_the_end(
    expected: Expectations, watcher: Watcher, announce: Callable[[Job], Awaitable[None]]
) -> None:
    job, states = expected.add(), list[int]()
    async with watcher.watching():
        following = asyncio.create_task(seen(watcher, job, None, states))
        await until(lambda: states == [1])
        expected.change(job)
        await announce(job)
        await until(lambda: states == [1, 2])
        expected.end(job)
        await announce(job)
        async with asyncio.timeout(5):
            await following

    assert states == [1, 2, 3]


@pytest.mark.usefixtures("polls_often")
async def test_a_follower_goes_on_from_what_it_has_seen(expected: Expectations, watcher: Watcher) -> None:
    job, states = expected.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5):
        following = asyncio.create_task(seen(watcher, job, 1, states))
        await until(lambda: expected.asked > 3)
        expected.end(job)
        await following

    assert states == [2]


@pytest.mark.usefixtures("never_polls")
async def test_whoever_has_seen_the_end_is_shown_nothing(expected: Expectations, watcher: Watcher) -> None:
    job, states = expected.add(), list[int]()
    expected.end(job)
    async with watcher.watching(), asyncio.timeout(5):
        await seen(watcher, job, 2, states)

    assert states == []


@pytest.mark.usefixtures("polls_often")
async def test_a_slow_follower_is_shown_what_is_and_not_what_was(expected: Expectations, watcher: Watcher) -> None:
    job, states = expected.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5), aclosing(watcher.follow(job.id, None)) as following:
        states.append((await anext(following)).version)
        for _ in range(5):
            expected.change(job)
            asked = expected.asked
            await until(lambda asked=asked: expected.asked > asked + 3)  # type: ignore[misc]
        states.append((await anext(following)).version)

    assert states == [1, 6]


@pytest.mark.usefixtures("polls_often")
async def test_a_follower_who_was_busy_when_the_job_ended_is_shown_the_end(
    expected: Expectations, watcher: Watcher
) -> None:
    job = expected.add()
    async with watcher.watching(), asyncio.timeout(5), aclosing(watcher.follow(job.id, None)) as following:
        await anext(following)
        expected.end(job)
        asked = expected.asked
        await until(lambda: expected.asked > asked + 3)
        assert [state.status async for state in following] == [JobStatus.SUCCEEDED]


@pytest.mark.usefixtures("polls_often")
async def test_a_job_that_is_gone_is_followed_no_further(expected: Expectations, watcher: Watcher) -> None:
    job, states = expected.add(), list[int]()
    async with watcher.watching(), asyncio.timeout(5):
        following = asyncio.create_task(seen(watcher, job, None, states))
        await until(lambda: states == [1])
        del expected.rows[job.id]
        await following


@pytest.mark.usefixtures("never_polls")
async def test_a_thousand_followers_of_a_thousand_jobs_are_shown_them_by_a_few_looks(
    expected: Expectations, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, states = [expected.add() for _ in range(1000)], [list[int]() for _ in range(1000)]
    async with watcher.watching():
        following = [
            asyncio.create_task(seen(watcher, job, None, shown)) for job, shown in zip(jobs, states, strict=True)
        ]
        await until(lambda: all(states))
        first = expected.asked
        monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 0.05)
        for job in jobs:
            expected.end(job)
        watcher._poll_soon(*(job.id for job in jobs))
        async with asyncio.timeout(5):
            await asyncio.gather(*following)

    assert states == [[1, 2]] * 1000
    assert (first, expected.asked) == (1, 2)
