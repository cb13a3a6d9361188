"""HEAD is answered on every route of GET, as GET is, without a body."""

from typing import Any
from uuid import uuid4

import httpx

from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from tests.integration.schedule_builders import made
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume


async def test_head_is_answered_on_every_route_of_get(services: Services, client: httpx.AsyncClient) -> None:
    snapshot = await a_snapshot(services, await a_stored_volume(services))
    job = (await client.post("/api/v1/volumes", json={"name": "new", "size": 1})).json()
    ids = {
        "project_id": DEFAULT_PROJECT,
        "volume_id": snapshot.volume_id,
        "snapshot_id": snapshot.id,
        "job_id": job["id"],
        "schedule_id": (await made(client))["id"],
        "code": "volume-busy",
    }
    document = (await client.get("/openapi.json")).json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    assert len(paths) > 15
    for path in [*paths, "/openapi.json", "/docs"]:
        await _expect_head_as_get(client, path.format(**ids))
        if "{" in path:
            await _expect_head_as_get(client, path.format(**dict.fromkeys(ids, uuid4())))


async def _expect_head_as_get(client: httpx.AsyncClient, path: str) -> None:
    head = await client.head(path)
    assert head.content == b"", path
    if path.endswith("/events") and head.is_success:  # a stream has no length, and does not end before the job
        assert head.headers["content-type"].startswith("text/event-stream")
        return
    get: Any = await client.get(path)
    compared = ("content-type", "content-length", "etag")
    assert [head.status_code, *map(head.headers.get, compared)] == [get.status_code, *map(get.headers.get, compared)]
