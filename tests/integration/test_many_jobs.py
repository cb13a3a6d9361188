"""All jobs that match are cancelled or retried: which ones, page by page, and what becomes of those that cannot be."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.jobs import many_jobs
from domain.jobs.store.jobs import Change, JobFilter
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, a_volume, sql
from tests.integration.project_builders import a_project
from tests.support.http import client_of
from tests.support.keys import BEARER

JOBS = "/api/v1/jobs"


async def post(client: httpx.AsyncClient, action: str, **body: Any) -> dict[str, Any]:
    response = await client.post(f"{JOBS}/{action}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def statuses(services: Services) -> list[str]:
    return [row[0] for row in await sql(services, "SELECT status FROM jobs ORDER BY id")]


async def fail_all(services: Services) -> None:
    """End all jobs, as failed, and give their volumes back."""
    await sql(services, "UPDATE jobs SET status = 'failed', finished_at = now(), error = '{\"code\": \"x\"}'")
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL, growing_to = NULL")


async def test_all_that_match_are_cancelled_page_by_page(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_jobs, "PAGE", 2)
    for _ in range(5):
        await a_queued_expand(services)
    before, accepted = None, []
    while True:
        answer = await post(client, "cancel", kind="volume.expand", **({} if before is None else {"before": before}))
        accepted.append(answer["accepted"])
        before = answer["next_before"]
        if before is None:
            break

    assert accepted == [2, 2, 1]
    assert await statuses(services) == ["cancelled"] * 5
    assert (await post(client, "cancel"))["accepted"] == 0
    assert await sql(services, "SELECT count(*) FROM audit_entries WHERE action = 'job.cancel'") == [(5,)]


async def test_dry_run_counts_and_changes_nothing(client: httpx.AsyncClient, services: Services) -> None:
    for _ in range(3):
        await a_queued_expand(services)

    assert await post(client, "cancel", dry_run=True) == {
        "accepted": 0,
        "refused": {},
        "next_before": None,
        "matched": 3,
        "more": False,
    }
    assert (await post(client, "retry", dry_run=True))["matched"] == 0
    assert await statuses(services) == ["queued"] * 3


async def test_count_ends_at_a_limit(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_jobs, "MAX_COUNTED", 2)
    counts = []
    for _ in range(3):
        await a_queued_expand(services)
        counts.append(await services.many_jobs.count(Change.CANCEL, JobFilter(), project_id=DEFAULT_PROJECT))

    assert counts == [(1, False), (2, False), (2, True)]


async def test_failed_jobs_are_retried_once(client: httpx.AsyncClient, services: Services) -> None:
    for _ in range(3):
        await a_queued_expand(services)
    await fail_all(services)

    assert (await post(client, "retry", status="failed"))["accepted"] == 3
    assert (await post(client, "retry", status="failed"))["accepted"] == 0
    assert sorted(await statuses(services)) == ["failed"] * 3 + ["queued"] * 3


async def test_refused_jobs_are_counted_by_code_and_do_not_stop_the_others(
    client: httpx.AsyncClient, services: Services
) -> None:
    for _ in range(2):
        await a_queued_expand(services)
    await fail_all(services)
    ((first,), *_) = await sql(services, "SELECT volume_id FROM jobs ORDER BY id")
    await client.post(f"/api/v1/volumes/{first}/expand", json={"percent": 10})

    answer = await post(client, "retry")
    assert (answer["accepted"], answer["refused"]) == (1, {"volume-busy": 1})


@pytest.mark.parametrize(
    ("body", "matched"),
    [
        ({}, 2),
        ({"kind": "volume.expand"}, 1),
        ({"kind": "volume.delete"}, 0),
        ({"status": "queued"}, 2),
        ({"status": "failed"}, 0),
        ({"created_by": "nobody"}, 0),
        ({"created_after": (datetime.now(UTC) + timedelta(days=1)).isoformat()}, 0),
        ({"created_before": (datetime.now(UTC) + timedelta(days=1)).isoformat()}, 2),
        ({"created_after": "2020-01-01T00:00:00+01:00"}, 2),
        ({"created_before": "2020-01-01T00:00:00Z"}, 0),
    ],
)
async def test_jobs_are_selected_by_each_filter(
    client: httpx.AsyncClient, services: Services, body: dict[str, str], matched: int
) -> None:
    await a_queued_expand(services)
    await client.post("/api/v1/volumes", json={"name": "other", "size": "1MiB"})

    assert (await post(client, "cancel", **body, dry_run=True))["matched"] == matched
    listed = await client.get(JOBS, params=body)
    assert len(listed.json()["items"]) == matched


async def test_jobs_of_another_project_are_neither_counted_nor_changed(app: Any, services: Services) -> None:
    await a_volume(services)
    await a_queued_expand(services)
    other = await a_project(services, "other")
    async with client_of(app, headers={"Authorization": f"Bearer {other.key}"}) as client:
        assert (await post(client, "cancel", dry_run=True))["matched"] == 0
        assert (await post(client, "cancel"))["accepted"] == 0

    assert await statuses(services) == ["queued"]


@pytest.mark.parametrize("moment", ["2026-01-31T00:00:00", "1969-12-31T23:59:59Z", "yesterday", 1])
async def test_time_without_a_zone_or_before_1970_is_refused(app: Any, moment: object) -> None:
    async with client_of(app, headers=BEARER) as client:
        response = await client.post(f"{JOBS}/cancel", json={"created_after": moment})

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "created_after"
