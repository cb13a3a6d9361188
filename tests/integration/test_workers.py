"""The list of workers: who is alive, what each serves and runs, and who may see it."""

from typing import Any

import httpx
from fastapi import FastAPI

from domain.services import Services
from tests.integration.job_builders import an_engine, sql
from tests.integration.project_builders import a_project
from tests.integration.test_rescue import a_running_expand

WORKERS = "/api/v1/workers"


async def listed(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = await client.get(WORKERS)
    assert response.status_code == 200, response.text
    return list(response.json()["items"])


async def test_worker_is_listed_with_what_it_serves_and_runs(services: Services, client: httpx.AsyncClient) -> None:
    engine = an_engine(services)
    engine._worker.slots = 3
    job = await a_running_expand(services, engine)
    await engine.renew([job.id])
    await services.registry.announce(engine._worker.id, "test")
    (worker,) = await listed(client)

    assert (worker["id"], worker["host"], worker["slots"]) == (str(engine._worker.id), "test", 3)
    assert (worker["alive"], worker["backends"]) == (True, ["memory"])
    assert [(one["id"], one["kind"], one["volume_id"]) for one in worker["jobs"]] == [
        (str(job.id), "volume.expand", str(job.volume_id))
    ]


async def test_worker_without_a_heartbeat_is_not_alive(services: Services, client: httpx.AsyncClient) -> None:
    await an_engine(services).renew([])
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '4 seconds'")

    assert [worker["alive"] for worker in await listed(client)] == [False], "a lease lasts three seconds"


async def test_jobs_of_other_projects_are_for_system_keys(
    app: FastAPI, services: Services, client: httpx.AsyncClient
) -> None:
    engine = an_engine(services)
    await a_running_expand(services, engine)
    await engine.renew([])
    project = await a_project(services, "search")
    (seen,) = await listed(client)
    async with project.client(app) as of_project:
        (hidden,) = await listed(of_project)

    assert (len(seen["jobs"]), hidden["jobs"]) == (1, [])
    assert hidden | {"jobs": seen["jobs"]} == seen
