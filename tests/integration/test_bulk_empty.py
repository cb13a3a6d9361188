"""A bulk job that selects no volume says so, or fails if its request requires any."""

from typing import Any

import pytest

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.requests import BulkRequest, Selection
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.services import Services
from tests.integration.bulk_builders import BY_ONE
from tests.integration.job_builders import a_volume
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


async def test_retry_of_a_job_that_selected_nothing_selects_anew(services: Services) -> None:
    request = BulkExpandRequest(BY_ONE, selection=Selection(require_any=True))
    failed = await carried_out(services, await services.bulk.request(request))
    await a_volume(services)
    retry = await carried_out(services, await services.jobs.retry(failed.id))

    assert (failed.status, retry.status, retry.total) == ("failed", "running", 1)
