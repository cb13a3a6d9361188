"""What users of other systems have reported, tried here: numbers for display, sizes, names, HEAD."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.schemas.fields import parse_size
from tests.unit.fakes import FakeServices, job_row, volume_row

JOBS, VOLUMES = "/api/v1/jobs", "/api/v1/volumes"
PROGRESS: dict[str, Any] = {"kind": "bulk.expand", "status": "running", "succeeded": 1, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("total", "age", "per_second"),
    [
        (400, timedelta(minutes=35), 0.0004762),
        (2**46, timedelta(days=30), 3.858e-07),
        (400, timedelta(seconds=-5), 1000.0),
        (1, timedelta(hours=1), 0.0002778),
    ],
    ids=["slow", "hopelessly slow", "started in the future", "as good as done"],
)
async def test_job_of_any_speed_can_be_read_listed_and_cancelled(
    fake: FakeServices, client: httpx.AsyncClient, total: int, age: timedelta, per_second: float
) -> None:
    job, followed = (
        fake.jobs.add(job_row(**PROGRESS, total=total, started_at=datetime.now(UTC) - age)) for _ in range(2)
    )
    events = await client.get(f"{JOBS}/{followed.id}/events")
    assert (events.status_code, events.text.count("event:")) == (200, 2)
    responses = [
        await client.get(f"{JOBS}/{job.id}"),
        await client.get(JOBS),
        await client.post(f"{JOBS}/{job.id}/cancel", headers={"Idempotency-Key": "once"}),
    ]

    assert [response.status_code for response in responses] == [200, 200, 202]
    progress: dict[str, Any] = responses[0].json()["progress"]
    assert progress["per_second"] == pytest.approx(per_second, rel=0.01)
    assert (progress["estimated_end"] is None) == (total == 2**46)


@pytest.mark.parametrize(
    ("written", "size"),
    [("4.1GB", 4_100_000_000), ("0.001KB", 1), ("0.001KiB", 2), ("1.1GiB", 1_181_116_007), ("7 b", 7), ("12B", 12)],
)
def test_size_is_converted_by_decimal_arithmetic(written: str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(("name", "accepted"), [("db.example.org", True), (".hidden", False)])
async def test_name_may_contain_dots(
    fake: FakeServices, client: httpx.AsyncClient, name: str, *, accepted: bool
) -> None:
    renamed, source = fake.volumes.add(volume_row("a")), fake.volumes.add(volume_row("b"))
    responses = [
        await client.post(VOLUMES, json={"name": f"{name}.1", "size": 1}),
        await client.post(VOLUMES, json={"name": f"{name}.2", "size": 1}, headers={"Idempotency-Key": "not hot"}),
        await client.patch(f"{VOLUMES}/{renamed.id}", json={"name": name}),
        await client.post(f"{VOLUMES}/{source.id}/snapshots", json={"name": name}),
        await client.post(f"{VOLUMES}/snapshots", json={"name": name}),
    ]

    assert [response.is_success for response in responses] == [accepted] * 5
    assert accepted or {response.status_code for response in responses} == {422}


async def test_unknown_backend_is_refused_with_the_names_of_all(client: httpx.AsyncClient) -> None:
    refused = [
        await client.post(VOLUMES, json={"name": "new", "size": 1, "backend": "tape"}),
        await client.post(f"{VOLUMES}/expand", json={"by": 1, "backend": "tape"}),
        await client.post(f"{VOLUMES}/snapshots", json={"name": "new", "backend": "tape"}),
    ]

    for response in refused:
        assert (response.status_code, response.json()["code"]) == (422, "unknown-backend")
        assert "'memory', 'null'" in response.json()["detail"]


async def test_head_is_answered_as_get_without_a_body(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume, job = fake.volumes.add(volume_row()), fake.jobs.add(job_row())
    paths = ["/healthz", "/readyz", VOLUMES, f"{VOLUMES}/{volume.id}", f"{JOBS}/{job.id}", JOBS, "/openapi.json"]
    for path in paths:
        head, get = await client.head(path), await client.get(path)

        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    missing = await client.head(f"{JOBS}/{volume.id}")
    assert (missing.status_code, missing.content) == (404, b"")


@pytest.mark.parametrize(
    ("if_match", "status"),
    [(None, 200), ("{tag}", 200), ('"other", {tag}', 200), ("*", 200), ('"other"', 412), ("W/{tag}", 412)],
)
async def test_change_of_another_version_is_refused(
    fake: FakeServices, client: httpx.AsyncClient, if_match: str | None, status: int
) -> None:
    volume = fake.volumes.add(volume_row("old"))
    tag = (await client.get(f"{VOLUMES}/{volume.id}")).headers["etag"]
    headers = {} if if_match is None else {"If-Match": if_match.format(tag=tag)}
    response = await client.patch(f"{VOLUMES}/{volume.id}", json={"name": "new"}, headers=headers)

    assert (response.status_code, volume.name) == (status, "new" if status == 200 else "old")
    assert status == 200 or response.json()["code"] == "precondition-failed"
