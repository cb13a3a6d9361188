"""The event stream of a job: each event has the whole job and its version as id; the last has the type `ended`."""

import json
from uuid import uuid4

import httpx
import pytest

from domain.jobs.states import JobStatus
from tests.unit.fakes import NOON, FakeServices, job_row

JOBS = "/api/v1/jobs"


def events_of(response: httpx.Response) -> list[dict[str, str]]:
    """Parse a stream of Server-Sent Events that has ended."""
    blocks = [block.splitlines() for block in response.text.split("\n\n") if block.strip()]
    return [dict(line.split(": ", 1) for line in lines if not line.startswith(":")) for lines in blocks]


async def test_stream_sends_the_whole_job_at_each_change_until_its_end(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    job = fake.jobs.add(job_row("bulk.expand", total=3, succeeded=2))
    response = await client.get(f"{JOBS}/{job.id}/events")

    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert response.headers["x-accel-buffering"] == "no", "nginx may buffer the events"
    first, last = events_of(response)
    assert (first["event"], first["id"], last["event"], last["id"]) == ("progress", "1", "ended", "2")
    assert json.loads(first["data"])["progress"]["succeeded"] == 2
    whole = (await client.get(f"{JOBS}/{job.id}")).json()
    del whole["params"]
    assert json.loads(last["data"]) == whole


async def test_last_event_id_resumes_the_stream(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    response = await client.get(f"{JOBS}/{job.id}/events", headers={"Last-Event-ID": "1"})

    assert [event["id"] for event in events_of(response)] == ["2"]


@pytest.mark.parametrize(
    "malformed", ["", "-1", "one", "9" * 30, "9" * 5000, "1.0", "²"], ids=lambda value: ascii(value[:9])
)
async def test_malformed_last_event_id_is_ignored(
    fake: FakeServices, client: httpx.AsyncClient, malformed: str
) -> None:
    job = fake.jobs.add(job_row())
    response = await client.get(f"{JOBS}/{job.id}/events", headers={b"Last-Event-ID": malformed.encode()})

    assert [event["id"] for event in events_of(response)] == ["1", "2"]


async def test_stream_is_204_after_the_last_event(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row(status=JobStatus.SUCCEEDED, finished_at=NOON))
    first = await client.get(f"{JOBS}/{job.id}/events")
    again = await client.get(f"{JOBS}/{job.id}/events", headers={"Last-Event-ID": events_of(first)[-1]["id"]})

    assert (again.status_code, again.content) == (204, b"")


async def test_stream_of_an_unknown_job_is_404(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{JOBS}/{uuid4()}/events")

    assert (response.status_code, response.json()["code"]) == (404, "job-not-found")


async def test_stream_rejects_query_parameters(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.get(f"{JOBS}/{fake.jobs.add(job_row()).id}/events?status=failed")

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "status")
