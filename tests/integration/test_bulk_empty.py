"""A bulk job that selects no volume says so, or fails if its request requires any."""

from typing import Any

import httpx
import pytest

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.requests import BulkRequest, Selection
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.services import Services
from tests.integration.bulk_builders import BY_ONE
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, a_volume
from tests.integration.schedule_builders import SCHEDULES, made
from tests.integration.snapshot_builders import carried_out

NOBODY_HAS_IT: dict[str, Any] = {"labels": {"team": "nobody"}}
NOTHING_SELECTED = {"code": "nothing-selected", "detail": "No volume matches the selection."}


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("kind", ["expand", "snapshot"])
async def test_job_without_volumes_says_so(services: Services, kind: str, *, required: bool) -> None:
    await a_volume(services)
    selection = Selection(**NOBODY_HAS_IT, require_any=required)
    request: BulkRequest = BulkExpandRequest(BY_ONE, selection=selection)
    if kind == "snapshot":
        request = BulkSnapshotRequest("nightly", selection=selection)
    job = await carried_out(services, await services.bulk.request(request))

    assert (job.status, job.result, job.error) == (
        ("failed", None, NOTHING_SELECTED) if required else ("succeeded", NOTHING_SELECTED, None)
    )
    assert (job.total or 0, job.succeeded or 0) == (0, 0)


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/volumes/expand", {"by": MIB}),
        ("/api/v1/volumes/snapshots", {"name": "nightly"}),
        ("/api/v0/volumes/expand", {"by": MIB}),
    ],
)
async def test_answer_about_nothing_says_so(
    client: httpx.AsyncClient,
    services: Services,
    running_worker: RunningWorker,
    path: str,
    body: dict[str, Any],
    *,
    required: bool,
) -> None:
    async with services.watcher.watching(), running_worker(services.settings):
        selection = NOBODY_HAS_IT | ({"require_any": True} if required else {})
        answer = (await client.post(path, json=body | selection, headers={"Prefer": "wait=30"})).json()

    status = answer["job_status" if required and "v0" in path else "status"]
    assert (status, answer["error" if required else "result"]) == (
        "failed" if required else "succeeded",
        NOTHING_SELECTED,
    )


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(("action", "params"), [("bulk.expand", {"by": MIB}), ("bulk.snapshot", {"name": "nightly"})])
async def test_run_of_a_schedule_about_nothing_says_so(
    client: httpx.AsyncClient,
    services: Services,
    running_worker: RunningWorker,
    action: str,
    params: dict[str, Any],
    *,
    required: bool,
) -> None:
    schedule = await made(client, action=action, params=params | NOBODY_HAS_IT | {"require_any": required})
    async with services.watcher.watching(), running_worker(services.settings):
        job = (await client.post(f"{SCHEDULES}/{schedule['id']}/run", headers={"Prefer": "wait=30"})).json()

    assert (job["status"], job["error" if required else "result"]) == (
        "failed" if required else "succeeded",
        NOTHING_SELECTED,
    )
    (run,) = (await client.get(f"{SCHEDULES}/{schedule['id']}")).json()["last_runs"]
    assert run["job_status"] == job["status"]


async def test_retry_of_a_job_that_selected_nothing_selects_anew(services: Services) -> None:
    request = BulkExpandRequest(BY_ONE, selection=Selection(require_any=True))
    failed = await carried_out(services, await services.bulk.request(request))
    await a_volume(services)
    retry = await carried_out(services, await services.jobs.retry(failed.id))

    assert (failed.status, retry.status, retry.total) == ("failed", "running", 1)
