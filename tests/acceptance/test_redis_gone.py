"""Redis is disposable: the API accepts jobs without it, and workers find every job once Redis is back."""

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobFilter
from domain.services import Services, open_services
from tests.acceptance import journal
from tests.acceptance.cluster import SMALL, Cluster
from tests.acceptance.waiting import ended
from tests.support.embedded import restart_redis_empty
from tests.support.keys import BEARER


@pytest.fixture
def private_redis(cluster: Cluster) -> Iterator[EmbeddedServers]:
    """A Redis for this cluster alone."""
    with temporary_data_dir() as folder, EmbeddedServers(folder, postgres=False, durable=False) as private_redis:
        cluster.settings = cluster.settings.model_copy(update={"redis_url": private_redis.redis_url})
        yield private_redis
        cluster.clear()


def post(api: httpx.Client, *names: str) -> None:
    """Request volumes, and assert that each is accepted within the client's timeout."""
    responses = [api.post("/api/v1/volumes", json={"name": name, "size": SMALL}) for name in names]
    assert [response.status_code for response in responses] == [202] * len(names)


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=5, trust_env=False, headers=BEARER)


async def all_ended(services: Services) -> list[Job]:
    """Wait until every job has ended, and return all of them."""
    jobs = (await services.jobs.list_jobs(JobFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)).items
    return [await ended(services, job.id) for job in jobs]


async def assert_each_once(services: Services, cluster: Cluster, jobs: list[Job]) -> None:
    assert {job.status for job in jobs} == {"succeeded"}
    for job in jobs:
        journal.assert_orderly(cluster.journal, job)
        assert job.volume_id is not None
        assert (await services.volumes.get(job.volume_id, project_id=DEFAULT_PROJECT)).version == job.params[
            "fence_version"
        ] + 1, "not recorded once"


async def test_redis_killed_and_restarted_empty_loses_no_job(cluster: Cluster, private_redis: EmbeddedServers) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        with client(cluster.start_api()) as api:
            worker = cluster.start_worker(url=cluster.url(delay_ms=100))
            for restart in range(3):
                post(api, *(f"before-{restart}-{number}" for number in range(8)))
                await asyncio.to_thread(private_redis.redis.stop, signal.SIGKILL)
                post(api, *(f"without-{restart}-{number}" for number in range(4)))
                await asyncio.to_thread(restart_redis_empty, private_redis)
        jobs = await all_ended(services)

        assert len(jobs) == 36
        await assert_each_once(services, cluster, jobs)
        assert worker.poll() is None


async def test_jobs_accepted_without_redis_from_the_start_run_later(
    cluster: Cluster, private_redis: EmbeddedServers
) -> None:
    private_redis.redis.stop(signal.SIGKILL)
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        worker = cluster.start_worker()
        with client(cluster.start_api()) as api:
            assert api.get("/readyz").json()["redis"] == "unavailable"
            post(api, *(f"v{number}" for number in range(10)))
            await asyncio.to_thread(private_redis.redis.start)
            jobs = await all_ended(services)
            assert api.get("/readyz").json()["redis"] == "ok"

        assert len(jobs) == 10
        await assert_each_once(services, cluster, jobs)
        assert worker.poll() is None


async def test_hanging_redis_loses_no_job_and_delays_no_request(
    cluster: Cluster, private_redis: EmbeddedServers
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        worker = cluster.start_worker()
        with client(cluster.start_api()) as api:
            post(api, "before")
            os.kill(private_redis.pids["redis"], signal.SIGSTOP)
            try:
                post(api, *(f"v{number}" for number in range(3)))
                assert api.get("/readyz").json()["redis"] == "unavailable"
            finally:
                os.kill(private_redis.pids["redis"], signal.SIGCONT)
        jobs = await all_ended(services)

        assert len(jobs) == 4
        await assert_each_once(services, cluster, jobs)
        assert worker.poll() is None
