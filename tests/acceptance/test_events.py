"""A bulk job, followed over HTTP as it happens: real API, real workers, storage that takes its time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from domain.services import Services
from tests.acceptance.cluster import Cluster
from tests.support.bulk import add_volumes

#: Eight at a time, a tenth of a second each: at least five seconds.
VOLUMES, AT_ONCE, DELAY_MS = 400, 8, 100

Event = dict[str, Any]


@asynccontextmanager
async def followed(
    http: httpx.AsyncClient, job_id: str, last_seen: str | None = None
) -> AsyncIterator[AsyncIterator[Event]]:
    """Follow a job; what is yielded are its events, as they come."""
    headers = {} if last_seen is None else {"Last-Event-ID": last_seen}
    async with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        yield _events(answer.aiter_lines())


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    event: Event = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = json.loads(value) if name == "data" else value
        elif event:
            yield event
            event = {}


def done(event: Event) -> int:
    """How many volumes an event says are done."""
    progress = event["data"]["progress"] or {"succeeded": 0}
    return int(progress["succeeded"])


async def test_a_bulk_job_of_five_seconds_shows_its_progress_and_a_client_that_was_cut_off_goes_on_from_there(
    cluster: Cluster, services: Services
) -> None:
    await add_volumes(services, VOLUMES, backend="local")
    cluster.start_worker(url=f"faulty+null:?delay_ms={DELAY_MS}")
    address = await asyncio.to_thread(cluster.start_api)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60) as http:
        job = (await http.post("/volumes/expand", json={"by": "1MiB", "max_concurrent": AT_ONCE})).json()
        seen: list[Event] = []
        async with followed(http, job["id"]) as events:
            async for event in events:
                seen.append(event)
                if done(event) > 0 and len(seen) >= 5:
                    break
        async with followed(http, job["id"], seen[-1]["id"]) as events:
            later = [event async for event in events]
        again = await http.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": later[-1]["id"]})

    versions = [int(event["id"]) for event in [*seen, *later]]
    counts = [done(event) for event in [*seen, *later]]
    assert len(versions) >= 10
    assert versions == sorted(set(versions))
    assert counts == sorted(counts)
    assert [event["event"] for event in later] == ["progress"] * (len(later) - 1) + ["ended"]
    assert later[-1]["data"]["progress"]["succeeded"] == later[-1]["data"]["progress"]["total"] == VOLUMES
    assert again.status_code == 204
