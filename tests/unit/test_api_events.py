"""A job that is followed: each event is the whole job under its version, and the last one says that it has ended."""

import json
from uuid import uuid4

import httpx
import pytest

from domain.jobs.states import JobStatus
from tests.unit.fakes import NOON, FakeServices, job_row

JOBS = "/api/v1/jobs"


def events_of(answer: httpx.Response) -> list[dict[str, str]]:
    """Read a stream of Server-Sent Events that has ended."""
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if block.strip()]
    return [dict(line.split(": ", 1) for line in lines if not line.startswith(":")) for lines in blocks]


async def test_a_stream_shows_the_whole_job_at_each_change_and_ends_with_it(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    job = fake.jobs.add(job_row("bulk.expand", total=3, succeeded=2))
    answer = await client.get(f"{JOBS}/{job.id}/events")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    first, last = events_of(answer)
    assert (first["event"], first["id"], last["event"], last["id"]) == ("progress", "1", "ended", "2")
    assert json.loads(first["data"])["progress"]["succeeded"] == 2
    whole = (await client.get(f"{JOBS}/{job.id}")).json()
    del whole["params"]
    assert json.loads(last["data"]) == whole


async def test_a_client_that_comes_again_is_sent_what_it_has_not_seen(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    job = fake.jobs.add(job_row())
    answer = await client.get(f"{JOBS}/{job.id}/events", headers={"Last-Event-ID": "1"})

    assert [event["id"] for event in events_of(answer)] == ["2"]


@pytest.mark.parametrize(
    "nonsense", ["", "-1", "one", "9" * 30, "9" * 5000, "1.0", "²"], ids=lambda said: ascii(said[:9])
)
async def test_an_event_that_never_was_is_as_good_as_none(
    fake: FakeServices, client: httpx.AsyncClient, nonsense: str
) -> None:
    job = fake.jobs.add(job_row())
    answer = await client.get(f"{JOBS}/{job.id}/events", headers={b"Last-Event-ID": nonsense.encode()})

    assert [event["id"] for event in events_of(answer)] == ["1", "2"]


async def test_a_client_that_has_seen_the_end_is_told_not_to_come_again(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    job = fake.jobs.add(job_row(status=JobStatus.SUCCEEDED, finished_at=NOON))
    first = await client.get(f"{JOBS}/{job.id}/events")
    again = await client.get(f"{JOBS}/{job.id}/events", headers={"Last-Event-ID": events_of(first)[-1]["id"]})

    assert (again.status_code, again.content) == (204, b"")


async def test_there_is_no_stream_of_a_job_that_does_not_exist(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{JOBS}/{uuid4()}/events")

    assert (answer.status_code, answer.json()["code"]) == (404, "job-not-found")


async def test_a_stream_takes_no_filter(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{JOBS}/{fake.jobs.add(job_row()).id}/events?status=failed")

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "status")
