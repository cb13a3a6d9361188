"""Concurrent requests are accepted together, and each gets its own answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.errors import (
    DatabaseUnavailable,
    JobNotFound,
    NameTaken,
    ShrinkRefused,
    SizeLimitExceeded,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services
from domain.volumes.batches import read_volumes
from domain.volumes.model import MAX_SIZE, Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_volume, counted_statements, everything, row, sql, volume_row
from tests.support.bulk import add_volumes

MANY = 200
#: Seconds in which every request ends that need not wait for a lock; one that waits takes longer.
NO_LOCK_WAIT = 4


@pytest.fixture
def connections(services: Services, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that have been taken from the pool, each as the task that took it."""
    opened: list[object] = []

    def record(method: str) -> None:
        opens = getattr(services.database, method)

        @asynccontextmanager
        async def recorded() -> AsyncIterator[AsyncSession | AsyncConnection]:
            opened.append(asyncio.current_task())
            async with opens() as connection:
                yield connection

        monkeypatch.setattr(services.database, method, recorded)

    record("transaction")
    record("autocommit")
    return opened


async def results_of(*requests: Coroutine[Any, Any, Job]) -> list[Any]:
    return list(await asyncio.gather(*requests, return_exceptions=True))


def expand(services: Services, volume_id: UUID, growth: Growth | None = None) -> Coroutine[Any, Any, Job]:
    return services.volumes.request_expand(volume_id, growth or Growth(by=MIB))


def create(services: Services, name: str) -> Coroutine[Any, Any, Job]:
    return services.volumes.request_create(NewVolume(name, MIB))


class TestExpansions:
    async def test_batch_is_accepted_on_one_connection_with_the_same_rows(
        self, services: Services, connections: list[object]
    ) -> None:
        volumes = await add_volumes(services, 20, backend="memory")
        del connections[:]
        origin = RequestOrigin(Actor("me"))
        jobs = await results_of(
            *(services.volumes.request_expand(v, Growth(percent=100), origin=origin) for v in volumes)
        )

        assert len(connections) == 1
        for job, volume_id in zip(jobs, volumes, strict=True):
            found, volume = await row(services, job.id), await volume_row(services, volume_id)
            assert (volume["state"], volume["job_id"], volume["version"]) == ("expanding", job.id, 2)
            assert volume["updated_at"] == found.created_at > volume["created_at"]
            assert found.params == {"to_size": 2 * MIB, "fence_version": 2}
            assert {column: getattr(job, column) for column in Job.__table__.columns.keys()} == {  # noqa: SIM118
                column: getattr(found, column)
                for column in Job.__table__.columns.keys()  # noqa: SIM118
            }

    async def test_each_request_of_a_batch_gets_its_own_error(self, services: Services) -> None:
        good, busy, broken, small, large = [await a_volume(services, size=2 * MIB) for _ in range(5)]
        active = await expand(services, busy.id)
        await sql(services, "UPDATE volumes SET state = 'error' WHERE id = :id", id=broken.id)
        results = await results_of(
            expand(services, busy.id),
            expand(services, broken.id),
            expand(services, uuid4()),
            expand(services, good.id),
            expand(services, small.id, Growth(to=MIB)),
            expand(services, large.id, Growth(by=MAX_SIZE)),
        )

        assert [type(result) for result in results] == [
            *(VolumeBusy, VolumeUnusable, VolumeNotFound),
            *(Job, ShrinkRefused, SizeLimitExceeded),
        ]
        assert results[0].details == {"job_id": active.id, "state": "expanding"}
        assert results[4].details == {"field": "to", "size": 2 * MIB}
        assert {job_id for (job_id,) in await sql(services, "SELECT id FROM jobs")} == {active.id, results[3].id}
        for volume in (broken, small, large):
            assert (await volume_row(services, volume.id))["version"] == 1

    async def test_second_request_for_a_volume_is_refused_with_the_job_of_the_first(
        self, services: Services, connections: list[object]
    ) -> None:
        volume = await a_volume(services)
        del connections[:]
        first, second = await results_of(expand(services, volume.id), expand(services, volume.id))

        assert len(connections) == 1
        assert isinstance(second, VolumeBusy)
        assert second.details == {"job_id": first.id, "state": "expanding"}

    async def test_batch_takes_two_statements(self, services: Services) -> None:
        volumes = await add_volumes(services, 20, backend="memory")
        with counted_statements() as sent:
            await results_of(*(expand(services, volume_id) for volume_id in volumes))

        assert len(sent) == 2

    async def test_volume_that_changes_after_it_was_read_is_expanded_from_its_new_size(
        self, services: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changing, other = await add_volumes(services, 2, backend="memory")

        async def change_after_reading(*arguments: Any) -> Any:
            volumes = await read_volumes(*arguments)
            await sql(services, "UPDATE volumes SET size = 5 * size, version = 3 WHERE id = :id", id=changing)
            return volumes

        monkeypatch.setattr("domain.volumes.batches.read_volumes", change_after_reading)
        jobs = await results_of(*(expand(services, volume_id) for volume_id in (changing, other)))

        assert [job.params for job in jobs] == [
            {"to_size": 6 * MIB, "fence_version": 4},
            {"to_size": 2 * MIB, "fence_version": 2},
        ]
        assert {found.id for found in await sql(services, "SELECT id FROM jobs")} == {job.id for job in jobs}
        assert await sql(services, "SELECT count(*) FROM audit_entries WHERE action = 'volume.expand'") == [(2,)]

    async def test_requests_for_a_volume_that_another_process_acquires_are_refused_with_its_job(
        self, services: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        volume, theirs = await a_volume(services), uuid4()

        async def acquire_after_reading(*arguments: Any) -> Any:
            volumes = await read_volumes(*arguments)
            acquire = "UPDATE volumes SET state = 'expanding', job_id = :job, version = 2 WHERE version = 1"
            await sql(services, acquire, job=theirs)
            return volumes

        monkeypatch.setattr("domain.volumes.batches.read_volumes", acquire_after_reading)
        results = await results_of(expand(services, volume.id), expand(services, volume.id))

        assert [result.details["job_id"] for result in results] == [theirs, theirs]
        assert await sql(services, "SELECT count(*) FROM jobs") == [(0,)]

    async def test_refused_request_leaves_the_volume_to_the_next(self, services: Services) -> None:
        volume = await a_volume(services)
        refused, accepted = await results_of(expand(services, volume.id, Growth(to=1)), expand(services, volume.id))

        assert (type(refused), type(accepted)) == (ShrinkRefused, Job)

    async def test_failure_of_one_request_affects_no_other(self, services: Services) -> None:
        volumes = await add_volumes(services, 5, backend="memory")
        callers = ["one", "two", "with \x00, which PostgreSQL rejects", "four", "five"]
        results = await results_of(
            *(
                services.volumes.request_expand(volume_id, Growth(by=MIB), origin=RequestOrigin(Actor(caller)))
                for volume_id, caller in zip(volumes, callers, strict=True)
            )
        )

        assert [isinstance(result, Job) for result in results] == [True, True, False, True, True]
        assert (await volume_row(services, volumes[2]))["state"] == "available"
        assert await sql(services, "SELECT count(*) FROM jobs") == [(4,)]


class TestCreations:
    async def test_batch_is_accepted_on_one_connection_with_the_same_rows(
        self, services: Services, connections: list[object]
    ) -> None:
        policy = {"usage_above": 80, "percent": 12.5, "up_to": 100 * MIB}
        requests = [
            NewVolume(f"new-{n}", (256 + n) * 4096, columns={"labels": {"n": str(n)}, "autogrow": policy})
            for n in range(20)
        ]
        jobs = await results_of(
            *(services.volumes.request_create(request, origin=RequestOrigin(Actor("me"))) for request in requests)
        )
        assert len(connections) == 1

        for job, request in zip(jobs, requests, strict=True):
            found, volume = await row(services, job.id), await volume_row(services, job.volume_id)
            assert (volume["name"], volume["size"], volume["labels"]) == (
                request.name,
                request.size,
                request.columns["labels"],
            )
            assert (volume["state"], volume["job_id"], volume["version"]) == ("creating", job.id, 1)
            assert (volume["backend"], volume["autogrow"]) == ("memory", policy)
            assert (found.kind, found.status, found.created_by) == ("volume.create", "queued", "me")
            assert found.params == {"size": request.size, "fence_version": 1}
            assert (job.created_at, job.run_at, job.dispatched_at) == (
                found.created_at,
                found.run_at,
                found.dispatched_at,
            )

    async def test_taken_names_are_refused_and_others_accepted(
        self, services: Services, connections: list[object]
    ) -> None:
        await a_volume(services, name="theirs")
        del connections[:]
        results = await results_of(*(create(services, name) for name in ("theirs", "mine", "mine", "yours")))

        assert len(connections) == 1
        assert [type(result) for result in results] == [NameTaken, Job, NameTaken, Job]
        assert (str(results[2]), results[2].details) == ("There is already a volume named 'mine'.", {"field": "name"})
        names = await sql(services, "SELECT name, id = :mine FROM volumes ORDER BY name", mine=results[1].volume_id)
        assert names == [("mine", True), ("theirs", False), ("yours", False)]
        assert await sql(services, "SELECT count(*) FROM jobs") == [(2,)]

    @pytest.mark.parametrize(("end", "expected"), [("commit", NameTaken), ("rollback", Job)])
    async def test_request_for_an_uncommitted_name_delays_no_other(
        self, services: Services, end: str, expected: type
    ) -> None:
        insert = text(
            "INSERT INTO volumes (id, name, backend, state, size, version, labels)"
            " VALUES (:id, 'wanted', 'memory', 'available', 1, 1, '{}')"
        )
        async with services.database.transaction() as session:
            await session.execute(insert, {"id": uuid4()})
            waiting = asyncio.create_task(create(services, "wanted"))
            async with asyncio.timeout(NO_LOCK_WAIT):
                await asyncio.gather(*(create(services, f"other-{n}") for n in range(4)))
                await create(services, "later")
            assert not waiting.done()
            if end == "rollback":
                await session.rollback()

        assert [type(found) for found in await asyncio.gather(waiting, return_exceptions=True)] == [expected]


async def test_request_for_a_locked_volume_delays_no_other(services: Services) -> None:
    locked, *others = await add_volumes(services, 5, backend="memory")
    async with services.database.transaction() as session:
        await session.execute(text("SELECT 1 FROM volumes WHERE id = :id FOR UPDATE"), {"id": locked})
        waiting = asyncio.create_task(expand(services, locked))
        async with asyncio.timeout(NO_LOCK_WAIT):
            jobs = await asyncio.gather(*(expand(services, volume_id) for volume_id in others))
            later = await asyncio.gather(*(create(services, f"later-{n}") for n in range(3)))
        assert not waiting.done()

    assert len(jobs) + len(later) == 7
    assert (await waiting).volume_id == locked


async def test_unknown_commit_result_is_not_reported_as_a_conflict(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that had no answer must not be retried singly: each request would conflict with its own job."""
    volumes = await add_volumes(services, 3, backend="memory")
    autocommit, lost = services.database.autocommit, [DatabaseUnavailable(), DatabaseUnavailable()]

    @asynccontextmanager
    async def lose_the_answer() -> AsyncIterator[AsyncConnection]:
        async with autocommit() as connection:
            yield connection
        if lost:
            raise lost.pop()

    monkeypatch.setattr(services.database, "autocommit", lose_the_answer)
    results = await results_of(
        *(expand(services, volume_id) for volume_id in volumes), *(create(services, f"new-{n}") for n in range(3))
    )
    monkeypatch.undo()

    assert [type(result) for result in results] == [DatabaseUnavailable] * 6
    assert await sql(services, "SELECT count(*), count(DISTINCT volume_id) FROM jobs") == [(6, 6)]


async def test_request_with_a_key_is_not_batched(services: Services, client: httpx.AsyncClient) -> None:
    body, key = {"name": "keyed", "size": MIB}, {"Idempotency-Key": "mine"}
    answers = await asyncio.gather(*(client.post("/api/v1/volumes", json=body, headers=key) for _ in range(5)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await everything(services)) == 2


async def test_concurrent_http_requests_are_accepted_in_few_batches(
    services: Services,
    client: httpx.AsyncClient,
    connections: list[object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine so many requests take longer, and maintenance would send their messages.
    monkeypatch.setattr("domain.jobs.transport.job_queue.TIMEOUT_SECONDS", 20)
    created = await asyncio.gather(
        *(
            client.post("/api/v1/volumes", json={"name": f"v{n}", "size": MIB}, headers={"X-Request-ID": f"r{n}"})
            for n in range(MANY)
        )
    )
    assert Counter(answer.status_code for answer in created) == {202: MANY}
    assert len(connections) <= MANY / 5
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now()")
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")

    del connections[:]
    grown = await asyncio.gather(
        *(
            client.post(f"/api/v1/volumes/{answer.json()['volume_id']}/expand", json={"by": MIB})
            for answer in created
            for _ in range(2)
        )
    )
    assert len(connections) <= MANY / 5
    assert Counter(answer.status_code for answer in grown) == {202: MANY, 409: MANY}
    assert await sql(services, "SELECT kind, count(*), count(DISTINCT volume_id) FROM jobs GROUP BY 1 ORDER BY 1") == [
        ("volume.create", MANY, MANY),
        ("volume.expand", MANY, MANY),
    ]
    assert await services.queue.redis.zcard(services.queue.keys.queue("memory")) == 2 * MANY
    lines: list[Any] = [record.msg for record in caplog.records]
    accepted = {line["job_id"]: line for line in lines if isinstance(line, dict) and line["event"] == "job.accepted"}
    assert len(accepted) == 2 * MANY
    for number, answer in enumerate(created):
        assert accepted[answer.json()["id"]]["request_id"] == f"r{number}", "logged with the request's own id"


async def test_concurrent_reads_of_jobs_are_one_statement(services: Services, connections: list[object]) -> None:
    jobs = await asyncio.gather(*(create(services, f"v{n}") for n in range(20)))
    unknown = uuid4()
    del connections[:]
    job_ids = [*(job.id for job in jobs), unknown, jobs[0].id]
    found = await asyncio.gather(
        *(services.jobs.get(job_id, project_id=DEFAULT_PROJECT) for job_id in job_ids), return_exceptions=True
    )

    assert len(connections) == 1
    assert [getattr(job, "id", type(job)) for job in found] == [*(job.id for job in jobs), JobNotFound, jobs[0].id]


async def test_read_after_a_change_returns_it(services: Services) -> None:
    job = await create(services, "changing")
    early = asyncio.create_task(services.jobs.get(job.id, project_id=DEFAULT_PROJECT))
    for version in range(2, 20):
        await sql(services, "UPDATE jobs SET version = :version", version=version)

        assert (await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).version == version
    assert (await early).version >= 1
