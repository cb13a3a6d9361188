"""Requests for volume operations, one at a time and concurrently."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.db.database import SERVER_SETTINGS
from domain.db.pagination import PageRequest
from domain.errors import (
    DatabaseUnavailable,
    NameTaken,
    ShrinkRefused,
    SizeLimitExceeded,
    UnknownBackend,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.store.jobs import JobFilter
from domain.operations import VolumeState
from domain.services import Services, open_services
from domain.volumes.model import MAX_SIZE, Growth, Volume
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_volume, everything, row, set_job, sql, volume_row

UNKNOWN_ID = uuid4()


async def names(services: Services, **filters: Any) -> list[str]:
    page = await services.volumes.list_volumes(
        VolumeFilter(**filters), PageRequest("volumes"), project_id=DEFAULT_PROJECT
    )
    return [volume.name for volume in page.items]


class TestCreate:
    async def test_request_creates_volume_and_job(self, services: Services) -> None:
        job = await services.volumes.request_create(
            NewVolume("new", MIB, columns={"labels": {"a": "b"}}), origin=RequestOrigin(Actor("me"))
        )
        volume = await volume_row(services, job.volume_id)
        found = await row(services, job.id)

        assert (volume["state"], volume["size"], volume["job_id"]) == ("creating", MIB, job.id)
        assert (volume["backend"], volume["labels"], volume["version"]) == ("memory", {"a": "b"}, 1)
        assert (found.status, found.kind, found.created_by) == ("queued", "volume.create", "me")
        assert (found.params, found.backend) == ({"size": MIB, "fence_version": 1}, "memory")
        assert found.max_attempts == services.settings.max_attempts

    async def test_one_of_twenty_concurrent_requests_with_one_name_is_accepted(self, services: Services) -> None:
        requests = (services.volumes.request_create(NewVolume("same", MIB)) for _ in range(20))
        results = await asyncio.gather(*requests, return_exceptions=True)

        assert sorted(type(result).__name__ for result in results) == ["Job"] + ["NameTaken"] * 19
        assert await sql(services, "SELECT count(*) FROM volumes UNION ALL SELECT count(*) FROM jobs") == [(1,), (1,)]

    async def test_error_names_the_taken_name(self, services: Services) -> None:
        await a_volume(services, name="mine")
        with pytest.raises(NameTaken, match="'mine'"):
            await services.volumes.request_create(NewVolume("mine", MIB))

    async def test_unknown_backend_is_refused_without_any_rows(self, services: Services) -> None:
        with pytest.raises(UnknownBackend):
            await services.volumes.request_create(NewVolume("a", MIB, backend="tape"))

        assert await everything(services) == []


class TestExpand:
    async def test_job_stores_the_target_size_not_the_step(self, services: Services) -> None:
        volume = await a_volume(services, size=10 * MIB)
        job = await services.volumes.request_expand(volume.id, Growth(percent=50))
        found = await volume_row(services, volume.id)

        assert job.params == {"to_size": 15 * MIB, "fence_version": 2}
        assert (found["state"], found["size"], found["version"]) == ("expanding", 10 * MIB, 2)
        assert found["job_id"] == job.id

    async def test_one_of_fifty_concurrent_requests_is_accepted_and_others_get_its_job(
        self, services: Services
    ) -> None:
        volume = await a_volume(services)
        requests = (services.volumes.request_expand(volume.id, Growth(by=MIB)) for _ in range(50))
        results = await asyncio.gather(*requests, return_exceptions=True)
        refused = [result for result in results if isinstance(result, VolumeBusy)]
        ((job_id,),) = await sql(services, "SELECT id FROM jobs")

        assert len(refused) == 49
        assert {result.details["job_id"] for result in refused} == {job_id}
        assert (await volume_row(services, volume.id))["version"] == 2

    async def test_volume_never_shrinks(self, services: Services) -> None:
        volume = await a_volume(services, size=2 * MIB)
        before = await everything(services)
        with pytest.raises(ShrinkRefused):
            await services.volumes.request_expand(volume.id, Growth(to=MIB))

        assert await everything(services) == before

    async def test_volume_never_grows_beyond_the_limit(self, services: Services) -> None:
        volume = await a_volume(services)
        before = await everything(services)
        with pytest.raises(SizeLimitExceeded):
            await services.volumes.request_expand(volume.id, Growth(by=MAX_SIZE))

        assert await everything(services) == before

    async def test_volume_in_error_is_not_expanded(self, services: Services) -> None:
        volume = await a_volume(services)
        await sql(services, "UPDATE volumes SET state = 'error'")
        with pytest.raises(VolumeUnusable):
            await services.volumes.request_expand(volume.id, Growth(by=1))

    async def test_unknown_volume_is_not_expanded(self, services: Services) -> None:
        with pytest.raises(VolumeNotFound):
            await services.volumes.request_expand(UNKNOWN_ID, Growth(by=1))


class TestDelete:
    async def test_idle_volume_is_acquired_for_deletion(self, services: Services) -> None:
        for state in ("available", "error"):
            volume = await a_volume(services)
            await sql(services, "UPDATE volumes SET state = :state WHERE id = :id", state=state, id=volume.id)
            job = await services.volumes.request_delete(volume.id)
            found = await volume_row(services, volume.id)

            assert (found["state"], found["job_id"]) == ("deleting", job.id)

    async def test_busy_volume_is_not_deleted(self, services: Services) -> None:
        volume = await a_volume(services)
        job = await services.volumes.request_expand(volume.id, Growth(by=1))
        with pytest.raises(VolumeBusy) as refused:
            await services.volumes.request_delete(volume.id)

        assert refused.value.details == {"job_id": job.id, "state": VolumeState.EXPANDING}

    async def test_one_of_concurrent_expand_and_delete_is_accepted(self, services: Services) -> None:
        volume = await a_volume(services)
        results = await asyncio.gather(
            services.volumes.request_delete(volume.id),
            services.volumes.request_expand(volume.id, Growth(by=1)),
            return_exceptions=True,
        )

        assert sorted(type(result).__name__ for result in results) == ["Job", "VolumeBusy"]

    async def test_unknown_volume_is_not_deleted(self, services: Services) -> None:
        with pytest.raises(VolumeNotFound):
            await services.volumes.request_delete(UNKNOWN_ID)


class TestChange:
    async def test_members_that_are_not_named_stay(self, services: Services) -> None:
        volume = await a_volume(services, name="old")
        await services.volumes.change(volume.id, {"labels": {"a": "b"}})
        changed = await services.volumes.change(volume.id, {"name": "new"})

        assert (changed.name, changed.labels, changed.autogrow) == ("new", {"a": "b"}, None)

    async def test_policy_is_set_and_removed(self, services: Services) -> None:
        volume, policy = await a_volume(services), {"usage_above": 80, "percent": 10, "up_to": 100}
        with_policy = await services.volumes.change(volume.id, {"autogrow": policy})
        assert with_policy.autogrow == policy
        await services.volumes.change(volume.id, {"autogrow": None})

        assert (await volume_row(services, volume.id))["autogrow"] is None

    async def test_change_of_a_busy_volume_does_not_affect_its_job(self, services: Services) -> None:
        volume = await a_volume(services)
        job = await services.volumes.request_expand(volume.id, Growth(by=1))
        await services.volumes.change(volume.id, {"name": "busy"})
        found = await volume_row(services, volume.id)

        assert (found["name"], found["state"], found["job_id"], found["version"]) == ("busy", "expanding", job.id, 2)

    async def test_taken_name_is_refused_and_nothing_changes(self, services: Services) -> None:
        await a_volume(services, name="theirs")
        volume = await a_volume(services, name="mine")
        change = {"name": "theirs", "labels": {"a": "b"}}
        with pytest.raises(NameTaken):
            await services.volumes.change(volume.id, change)
        found = await volume_row(services, volume.id)

        assert (found["name"], found["labels"]) == ("mine", {})

    async def test_volume_may_keep_its_own_name(self, services: Services) -> None:
        volume = await a_volume(services, name="mine")

        assert (await services.volumes.change(volume.id, {"name": "mine"})).name == "mine"

    async def test_change_updates_the_time_stamp(self, services: Services) -> None:
        volume = await a_volume(services)
        changed = await services.volumes.change(volume.id, {"labels": {"a": "b"}})

        assert changed.updated_at > changed.created_at


class TestLists:
    async def test_volumes_are_paged_newest_first(self, services: Services) -> None:
        created = [(await a_volume(services)).name for _ in range(5)]
        pages, cursor = [], None
        while True:
            page = await services.volumes.list_volumes(
                VolumeFilter(), PageRequest("volumes", 2, cursor), project_id=DEFAULT_PROJECT
            )
            pages.append([volume.name for volume in page.items])
            if (cursor := page.next_cursor) is None:
                break

        newest_first = created[::-1]
        assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]

    async def test_list_is_filtered(self, services: Services) -> None:
        for name, labels in (("a", {"x": "1", "y": "2"}), ("b", {"x": "1"}), ("c", {})):
            volume = await a_volume(services, name=name)
            await services.volumes.change(volume.id, {"labels": labels})
        await sql(services, "UPDATE volumes SET state = 'error' WHERE name = 'c'")

        assert await names(services) == ["c", "b", "a"]
        assert await names(services, state=VolumeState.ERROR) == ["c"]
        assert await names(services, name="b") == ["b"]
        assert await names(services, labels={"x": "1"}) == ["b", "a"]
        assert await names(services, labels={"x": "1", "y": "2"}) == ["a"]
        assert await names(services, labels={"x": "1"}, name="c") == []

    async def test_jobs_are_filtered_and_children_are_listed_only_by_parent(self, services: Services) -> None:
        parent = await services.volumes.request_create(NewVolume("parent", MIB))
        child = await services.volumes.request_create(NewVolume("child", MIB))
        cancelled = await services.jobs.cancel((await services.volumes.request_create(NewVolume("cancelled", MIB))).id)
        await set_job(services, child.id, f"parent_id = '{parent.id}'")

        async def listed(**filters: Any) -> list[Any]:
            page = await services.jobs.list_jobs(JobFilter(**filters), PageRequest("jobs"), project_id=DEFAULT_PROJECT)
            return [job.id for job in page.items]

        assert await listed() == [cancelled.id, parent.id]
        assert await listed(parent_id=parent.id) == [child.id]
        assert await listed(status=cancelled.status) == [cancelled.id]
        assert await listed(volume_id=parent.volume_id) == [parent.id]
        assert await listed(kind="volume.delete") == []


async def test_held_lock_ends_in_a_timeout(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVER_SETTINGS, "statement_timeout", "100")
    volume = await a_volume(services)
    async with open_services(services.settings, adopt=True) as impatient, services.database.transaction() as session:
        await session.get(Volume, volume.id, with_for_update=True)
        with pytest.raises(DatabaseUnavailable):
            await asyncio.create_task(impatient.volumes.request_expand(volume.id, Growth(by=1)))


async def test_process_idle_in_a_transaction_loses_its_locks(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVER_SETTINGS, "idle_in_transaction_session_timeout", "100")
    volume = await a_volume(services)
    async with open_services(services.settings, adopt=True) as idle:

        async def idle_while_another_requests_the_volume() -> None:
            async with idle.database.transaction() as session:
                await session.get(Volume, volume.id, with_for_update=True)
                await services.volumes.request_expand(volume.id, Growth(by=1))

        with pytest.raises(DatabaseUnavailable):
            await idle_while_another_requests_the_volume()

    assert (await volume_row(services, volume.id))["state"] == "expanding"


async def test_jobs_and_items_name_their_volumes(services: Services, client: httpx.AsyncClient) -> None:
    volume = await a_volume(services, name="data")
    expand = (await client.post(f"/api/v1/volumes/{volume.id}/expand", json={"percent": 10})).json()
    await sql(services, "UPDATE jobs SET status = 'failed', finished_at = now()")
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL, growing_to = NULL, name = 'renamed'")
    bulk = (await client.post("/api/v1/volumes/expand", json={"percent": 10})).json()
    insert = "INSERT INTO job_items (job_id, volume_id, status) SELECT CAST(:job AS uuid), id, 'pending' FROM volumes"
    await sql(services, insert, job=bulk["id"])
    retry = (await client.post(f"/api/v1/jobs/{expand['id']}/retry")).json()
    items = (await client.get(f"/api/v1/jobs/{bulk['id']}/items")).json()["items"]

    assert (expand["volume_name"], retry["volume_name"]) == ("data", "renamed")
    assert [item["volume_name"] for item in items] == ["renamed"]
    assert await sql(services, "SELECT subject_name FROM audit_entries WHERE job_id = :id", id=expand["id"]) == [
        ("data",)
    ]


async def test_volume_in_error_says_why_and_which_job_has_left_it_so(
    services: Services, client: httpx.AsyncClient
) -> None:
    volume = await a_volume(services)
    path = f"/api/v1/volumes/{volume.id}"
    assert ((await client.get(path)).json()["last_error"], (await client.get(path)).json()["last_job_id"]) == (
        None,
        None,
    )
    await client.post(f"{path}/expand", json={"percent": 10})
    await sql(
        services,
        "UPDATE jobs SET status = 'failed', finished_at = now(), error = CAST(:error AS jsonb)",
        error='{"code": "storage-failed", "detail": "It broke."}',
    )
    await sql(services, "UPDATE volumes SET state = 'error', job_id = NULL, growing_to = NULL")
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    for shown in ((await client.get(path)).json(), (await client.get("/api/v1/volumes")).json()["items"][0]):
        assert shown["last_error"] == {"code": "storage-failed", "detail": "It broke."}
        assert shown["last_job_id"] == str(job_id)
