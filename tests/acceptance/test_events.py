"""Follow a bulk job by its event stream: a real API, a real worker, slow storage."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from domain.services import Services
from tests.acceptance.cluster import Cluster
from tests.support.bulk import add_volumes
from tests.support.keys import BEARER

#: 200 volumes, 8 at once, 100 ms each: at least 2.5 s.
VOLUMES, MAX_CONCURRENT, DELAY_MS = 200, 8, 100

Event = dict[str, Any]


@asynccontextmanager
async def follow(
    http: httpx.AsyncClient, job_id: str, last_event_id: str | None = None
) -> AsyncIterator[AsyncIterator[Event]]:
    """Follow a job for the duration of the block; yield its events as they arrive."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        yield _parse_events(response.aiter_lines())


async def _parse_events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    event: Event = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = json.loads(value) if name == "data" else value
        elif event:
            yield event
            event = {}


def succeeded(event: Event) -> int:
    """Return the number of volumes that have succeeded according to an event."""
    progress = event["data"]["progress"] or {"succeeded": 0}
    return int(progress["succeeded"])


async def test_event_stream_shows_progress_and_resumes_after_a_disconnect(cluster: Cluster, services: Services) -> None:
    await add_volumes(services, VOLUMES, backend="local")
    cluster.start_worker(url=f"faulty+null:?delay_ms={DELAY_MS}&gate={cluster.gate()}")
    address = await asyncio.to_thread(cluster.start_api)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=BEARER) as http:
        job = (await http.post("/volumes/expand", json={"by": "1MiB", "max_concurrent": MAX_CONCURRENT})).json()
        first: list[Event] = []
        async with follow(http, job["id"]) as events:
            async for event in events:
                first.append(event)
                if succeeded(event) > 0:
                    cluster.gate().touch()  # the job must not end before it is followed again
                    break
        async with follow(http, job["id"], first[-1]["id"]) as events:
            cluster.gate().unlink()
            later = [event async for event in events]
        again = await http.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": later[-1]["id"]})

    versions = [int(event["id"]) for event in [*first, *later]]
    counts = [succeeded(event) for event in [*first, *later]]
    assert len(versions) >= 10
    assert versions == sorted(set(versions))
    assert counts == sorted(counts)
    assert [event["event"] for event in later] == ["progress"] * (len(later) - 1) + ["ended"]
    assert later[-1]["data"]["progress"]["succeeded"] == later[-1]["data"]["progress"]["total"] == VOLUMES
    assert again.status_code == 204
