"""Routes of volumes: create, get, expand, update, delete, list."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.operations import VolumeState
from tests.unit.fakes import FakeServices, volume_row

VOLUMES = "/api/v1/volumes"


async def names(client: httpx.AsyncClient, query: str) -> list[str]:
    response = await client.get(f"{VOLUMES}?{query}")
    return [volume["name"] for volume in response.json()["items"]]


async def test_create_volume_returns_its_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    body = {"name": "one", "size": "10GiB", "labels": {"team": "search"}}
    response = await client.post(VOLUMES, json=body, headers={"X-Cistern-Caller": "alice"})

    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert response.headers["retry-after"] == "1"
    assert (job["kind"], job["status"], job["created_by"]) == ("volume.create", "queued", "system")
    volume = fake.volumes.rows[UUID(job["volume_id"])]
    assert (volume.size, volume.labels) == (10 * 2**30, {"team": "search"})


@pytest.mark.parametrize(
    ("size", "parsed_bytes"),
    [
        (1, 4096),
        (4096.0, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("5KiB", 8192),
        ("1 kb", 4096),
        ("1.5GiB", 1610612736),
        ("64TiB", 64 * 2**40),
    ],
)
async def test_size_is_parsed_from_numbers_and_text(
    fake: FakeServices, client: httpx.AsyncClient, size: object, parsed_bytes: int
) -> None:
    response = await client.post(VOLUMES, json={"name": "one", "size": size})

    assert response.status_code == 202, response.text
    assert [volume.size for volume in fake.volumes.rows.values()] == [parsed_bytes]


@pytest.mark.parametrize("name", ["a", "0", "A-b_c-9", "a" * 128])
async def test_valid_name_is_accepted(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.post(VOLUMES, json={"name": name, "size": 1})).status_code == 202


@pytest.mark.parametrize(
    ("growth", "to_size"),
    [({"to": 16384}, 16384), ({"by": "4KiB"}, 12288), ({"percent": 100}, 16384), ({"to": 8192}, 8192)],
)
async def test_growth_is_given_by_to_by_or_percent(
    fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any], to_size: int
) -> None:
    volume = fake.volumes.add(volume_row(size=8192))
    response = await client.post(f"{VOLUMES}/{volume.id}/expand", json=growth)

    assert response.status_code == 202
    assert response.json()["params"] == {"to_size": to_size}  # without the fence
    assert volume.state is VolumeState.EXPANDING


async def test_volume_has_its_path_and_utc_times(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(used=512))
    body = (await client.get(f"{VOLUMES}/{volume.id}")).json()

    assert body["path"] == f"/volumes/{volume.id}"
    assert (body["size"], body["used"], body["used_at"]) == (8192, 512, None)
    assert body["created_at"] == "2026-01-31T12:00:00Z"


async def test_deleted_volume_is_deleting_until_its_job_ends(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(state=VolumeState.ERROR))
    response = await client.delete(f"{VOLUMES}/{volume.id}")

    assert (response.status_code, response.json()["kind"]) == (202, "volume.delete")
    assert volume.state is VolumeState.DELETING


async def test_patch_changes_only_the_members_given(fake: FakeServices, client: httpx.AsyncClient) -> None:
    autogrow = {"usage_above": 80, "percent": 20.0, "up_to": 2**40}
    volume = fake.volumes.add(volume_row("one", labels={"team": "search"}, autogrow=autogrow))
    path = f"{VOLUMES}/{volume.id}"

    assert (await client.patch(path, json={})).status_code == 200
    assert (volume.name, volume.labels, volume.autogrow) == ("one", {"team": "search"}, autogrow)

    body = (await client.patch(path, json={"name": "two"})).json()
    assert (body["name"], body["labels"], body["autogrow"]) == ("two", {"team": "search"}, autogrow)

    body = (await client.patch(path, json={"labels": {}, "autogrow": None})).json()
    assert (body["name"], body["labels"], body["autogrow"]) == ("two", {}, None)

    grow = {"usage_above": 90, "by": "1GiB", "up_to": "1TiB"}
    body = (await client.patch(path, json={"autogrow": grow})).json()
    assert body["autogrow"] == {"usage_above": 90, "by": 2**30, "up_to": 2**40}


async def test_list_pages_run_from_newest_to_oldest(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(7):
        fake.volumes.add(volume_row(f"v{number}"))

    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"{VOLUMES}?limit=3{cursor and '&cursor='}{cursor}")).json()
        pages.append([volume["name"] for volume in page["items"]])
        cursor = page["next_cursor"]

    assert pages == [["v6", "v5", "v4"], ["v3", "v2", "v1"], ["v0"]]


async def test_limit_above_the_maximum_is_lowered(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(201):
        fake.volumes.add(volume_row(f"v{number}"))

    assert len(await names(client, "limit=100000000000000000000")) == 200
    assert len(await names(client, "")) == 50


async def test_list_filters_are_combined(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.volumes.add(volume_row("a", labels={"team": "search", "url": "a:b"}))
    fake.volumes.add(volume_row("b", labels={"team": "search"}, state=VolumeState.ERROR))
    fake.volumes.add(volume_row("c"))

    assert await names(client, "label=team:search") == ["b", "a"]
    assert await names(client, "label=team:search&state=error") == ["b"]
    assert await names(client, "label=team:search&label=url:a:b") == ["a"]
    assert await names(client, "name=c") == ["c"]
    assert await names(client, "name=c&state=error") == []


async def test_cursor_does_not_depend_on_label_order(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for name in "ab":
        fake.volumes.add(volume_row(name, labels={"x": "1", "y": "2"}))
    cursor = (await client.get(f"{VOLUMES}?limit=1&label=x:1&label=y:2")).json()["next_cursor"]

    assert await names(client, f"label=y:2&label=x:1&cursor={cursor}") == ["a"]


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs", None])
async def test_file_system_of_a_new_volume_is_that_of_the_request(
    fake: FakeServices, client: httpx.AsyncClient, filesystem: str | None
) -> None:
    response = await client.post(VOLUMES, json={"name": "one", "size": "1GiB", "filesystem": filesystem})
    volume = fake.volumes.rows[UUID(response.json()["volume_id"])]

    assert volume.filesystem == filesystem
    assert (await client.get(f"{VOLUMES}/{volume.id}")).json()["filesystem"] == filesystem


@pytest.mark.parametrize("filesystem", ["zfs", "EXT4", "", 4, ["ext4"]])
async def test_unknown_file_system_is_refused(client: httpx.AsyncClient, filesystem: object) -> None:
    response = await client.post(VOLUMES, json={"name": "one", "size": "1GiB", "filesystem": filesystem})

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "filesystem")


async def test_volume_shows_its_file_system_and_what_it_began_with(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    reported = {"filesystem_size": 8000, "filesystem_used": 100, "inodes": 10, "inodes_used": 3}
    snapshot_id, volume_id = UUID(int=1), UUID(int=2)
    plain = fake.volumes.add(volume_row("plain"))
    cloned = fake.volumes.add(
        volume_row("cloned", **reported, filesystem_error="it has errors", source_snapshot_id=snapshot_id)
    )
    copied = fake.volumes.add(volume_row("copied", source_volume_id=volume_id))
    shown = {one.id: (await client.get(f"{VOLUMES}/{one.id}")).json() for one in (plain, cloned, copied)}

    names = (*reported, "filesystem_error")
    assert [shown[plain.id][name] for name in (*names, "source")] == [None] * 6
    assert [shown[cloned.id][name] for name in names] == [*reported.values(), "it has errors"]
    assert shown[cloned.id]["source"] == {"snapshot_id": str(snapshot_id)}
    assert shown[copied.id]["source"] == {"volume_id": str(volume_id)}
