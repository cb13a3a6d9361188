"""Every accepted change leaves one entry in the audit log, in the transaction that accepts it; nothing else does."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from domain.audit.model import Actor, new_entry
from domain.audit.repository import add_entries, prune_entries
from domain.db.sql import first_id_of
from domain.jobs.acceptance import RequestOrigin
from domain.services import Services
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, sql
from tests.support import keys

V1 = "/api/v1"
SCHEDULE = {"name": "nightly", "cron": "0 2 * * *", "action": "bulk.expand", "params": {"percent": 10}}


async def entries(client: httpx.AsyncClient, **filters: str) -> list[dict[str, Any]]:
    return list((await client.get(f"{V1}/audit", params=filters)).json()["items"])


async def let_jobs_end(services: Services) -> None:
    """End all jobs without any effect, and let go of their volumes."""
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await sql(services, "UPDATE jobs SET status = 'cancelled', finished_at = now()")


async def available_volume(services: Services, client: httpx.AsyncClient, name: str) -> str:
    job = (await client.post(f"{V1}/volumes", json={"name": name, "size": MIB})).json()
    await let_jobs_end(services)
    return str(job["volume_id"])


async def test_each_change_has_one_entry_with_who_what_and_from_where(
    services: Services, client: httpx.AsyncClient
) -> None:
    volume = await available_volume(services, client, "a")
    await sql(services, "DELETE FROM audit_entries")
    schedule = (await client.post(f"{V1}/schedules", json=SCHEDULE)).json()["id"]
    key = (await client.post(f"{V1}/keys", json={"name": "ci", "role": "viewer"})).json()["id"]
    expand = (await client.post(f"{V1}/volumes/{volume}/expand", json={"by": MIB})).json()["id"]
    changes = [
        await client.patch(f"{V1}/volumes/{volume}", json={"labels": {"a": "b"}}),
        await client.post(f"{V1}/jobs/{expand}/cancel"),
        await client.post(f"{V1}/jobs/{expand}/retry"),
        await client.post(f"{V1}/volumes/snapshots", json={"name": "x"}),
        await client.patch(f"{V1}/schedules/{schedule}", json={"enabled": False}),
        await client.post(f"{V1}/schedules/{schedule}/run"),
        await client.delete(f"{V1}/schedules/{schedule}"),
        await client.post(f"{V1}/keys/{key}/rotate", json={}),
        await client.delete(f"{V1}/keys/{key}"),
        await client.post(f"{V1}/volumes", json={"name": "b", "size": MIB}, headers={"Idempotency-Key": "once"}),
    ]
    assert all(response.is_success for response in changes), [response.text for response in changes]

    found = list(reversed(await entries(client)))
    assert [entry["action"] for entry in found] == [
        *("schedule.create", "key.create", "volume.expand", "volume.update", "job.cancel", "volume.expand"),
        *(
            "bulk.snapshot",
            "schedule.update",
            "bulk.expand",
            "schedule.delete",
            "key.rotate",
            "key.revoke",
            "volume.create",
        ),
    ]
    assert {entry["name"] for entry in found} == {keys.NAME}
    assert {entry["peer"] for entry in found} == {"127.0.0.1"}
    assert [entry["request_id"] for entry in found][3:] == [response.headers["x-request-id"] for response in changes]
    assert found[3]["details"] == {"members": ["labels"]}
    assert (found[9]["subject_name"], found[9]["subject_id"]) == ("nightly", schedule)
    assert (found[2]["job_id"], found[2]["subject_id"]) == (expand, volume)


async def test_refused_and_repeated_requests_leave_no_entry(services: Services, client: httpx.AsyncClient) -> None:
    once = {"Idempotency-Key": "once"}
    new = {"name": "a", "size": MIB}
    assert (await client.post(f"{V1}/volumes", json=new, headers=once)).status_code == 202
    assert (await client.post(f"{V1}/volumes", json=new, headers=once)).status_code == 202
    assert (await client.post(f"{V1}/volumes", json=new)).status_code == 409
    assert (await client.post(f"{V1}/volumes", json=new | {"size": 0})).status_code == 422
    assert (await client.delete(f"{V1}/volumes/{uuid4()}")).status_code == 404
    assert (await client.post(f"{V1}/volumes/expand", json={"percent": 1, "dry_run": True})).status_code == 200

    assert [entry["action"] for entry in await entries(client)] == ["volume.create"]


async def test_requests_of_one_batch_have_an_entry_each(services: Services, client: httpx.AsyncClient) -> None:
    bodies = [{"name": f"v{number}", "size": MIB} for number in range(64)]
    created = await asyncio.gather(*(client.post(f"{V1}/volumes", json=body) for body in bodies))
    await let_jobs_end(services)
    volume_ids = [response.json()["volume_id"] for response in created]
    grown = await asyncio.gather(*(client.post(f"{V1}/volumes/{one}/expand", json={"by": MIB}) for one in volume_ids))

    rows = await sql(services, "SELECT job_id::text, request_id, action FROM audit_entries")
    expected = {
        (r.json()["id"], r.headers["x-request-id"], kind)
        for kind, group in (("volume.create", created), ("volume.expand", grown))
        for r in group
    }
    assert len(rows) == 128
    assert {tuple(row) for row in rows} == expected


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["in a batch", "alone"])
async def test_job_whose_entry_cannot_be_written_is_not_accepted(
    services: Services, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await sql(services, "ALTER TABLE audit_entries ADD CHECK (false)")

    assert (await client.post(f"{V1}/volumes", json={"name": "a", "size": MIB}, headers=headers)).status_code == 500
    assert await sql(services, "SELECT count(*) FROM jobs") == [(0,)]


async def test_entries_can_be_filtered(services: Services, client: httpx.AsyncClient) -> None:
    for name in ("me", "you"):
        await services.volumes.request_create(NewVolume(name, MIB), origin=RequestOrigin(Actor(name)))
    (mine,) = await entries(client, name="me")

    assert mine["action"] == "volume.create"
    for filters in ({"job_id": mine["job_id"]}, {"subject_id": mine["subject_id"]}):
        assert await entries(client, **filters) == [mine]
    assert len(await entries(client, action="volume.create")) == 2
    assert await entries(client, action="volume.delete") == []


async def test_old_entries_are_pruned(services: Services) -> None:
    async def add(session: AsyncSession, days: int) -> None:
        at = first_id_of(datetime.now(UTC) - timedelta(days=days))
        entry = replace(new_entry(Actor("me"), f"{days} days ago"), id=UUID(int=at.int + 1))
        await add_entries(session, [entry])

    async with services.database.transaction() as session:
        for days in (500, 401, 399, 0):
            await add(session, days)
    async with services.database.transaction() as session:
        assert await prune_entries(session, age=timedelta(days=400)) == 2

    rows = await sql(services, "SELECT action FROM audit_entries ORDER BY id")
    assert [row[0] for row in rows] == ["399 days ago", "0 days ago"]
    assert (await services.retention.prune()).rows == 0
