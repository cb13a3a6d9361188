"""Volumes over HTTP: what is accepted, how it is answered, and how lists are walked."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.volumes.states import VolumeState
from tests.unit.fakes import FakeServices, volume_row

VOLUMES = "/api/v1/volumes"


async def names(client: httpx.AsyncClient, query: str) -> list[str]:
    answer = await client.get(f"{VOLUMES}?{query}")
    return [volume["name"] for volume in answer.json()["items"]]


async def test_an_accepted_volume_is_answered_with_its_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    body = {"name": "one", "size": "10GiB", "labels": {"team": "search"}}
    answer = await client.post(VOLUMES, json=body, headers={"X-Cistern-Caller": "nightly"})

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (job["kind"], job["status"], job["created_by"]) == ("volume.create", "queued", "nightly")
    volume = fake.volumes.rows[UUID(job["volume_id"])]
    assert (volume.size, volume.labels) == (10 * 2**30, {"team": "search"})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (1, 1),
        (4096.0, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("1 kb", 1000),
        ("1.5GiB", 1610612736),
        ("64TiB", 64 * 2**40),
    ],
)
async def test_a_size_may_be_said_in_several_ways(
    fake: FakeServices, client: httpx.AsyncClient, said: object, meant: int
) -> None:
    answer = await client.post(VOLUMES, json={"name": "one", "size": said})

    assert answer.status_code == 202, answer.text
    assert [volume.size for volume in fake.volumes.rows.values()] == [meant]


@pytest.mark.parametrize("name", ["a", "0", "A-b_c-9", "a" * 128])
async def test_a_plain_name_is_a_good_one(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.post(VOLUMES, json={"name": name, "size": 1})).status_code == 202


@pytest.mark.parametrize("caller", ["", "a" * 129, "a\tb"])
async def test_a_caller_that_cannot_be_kept_is_nobody(client: httpx.AsyncClient, caller: str) -> None:
    answer = await client.post(VOLUMES, json={"name": "a", "size": 1}, headers={"X-Cistern-Caller": caller})

    assert answer.json()["created_by"] is None


@pytest.mark.parametrize(
    ("growth", "to_size"), [({"to": 2048}, 2048), ({"by": "1KiB"}, 2048), ({"percent": 50}, 1536), ({"to": 1024}, 1024)]
)
async def test_a_volume_grows_in_three_ways(
    fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any], to_size: int
) -> None:
    volume = fake.volumes.add(volume_row(size=1024))
    answer = await client.post(f"{VOLUMES}/{volume.id}/expand", json=growth)

    assert answer.status_code == 202
    assert answer.json()["params"] == {"to_size": to_size}  # and nothing of the fence
    assert volume.state is VolumeState.EXPANDING


async def test_a_volume_is_shown_with_its_place_and_in_utc(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(used=512))
    shown = (await client.get(f"{VOLUMES}/{volume.id}")).json()

    assert shown["path"] == f"/volumes/{volume.id}"
    assert (shown["size"], shown["used"], shown["used_at"]) == (1024, 512, None)
    assert shown["created_at"] == "2026-01-31T12:00:00Z"


async def test_a_volume_is_deleting_until_its_job_is_done(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(state=VolumeState.ERROR))
    answer = await client.delete(f"{VOLUMES}/{volume.id}")

    assert (answer.status_code, answer.json()["kind"]) == (202, "volume.delete")
    assert volume.state is VolumeState.DELETING


async def test_a_patch_changes_what_it_names_and_nothing_else(fake: FakeServices, client: httpx.AsyncClient) -> None:
    autogrow = {"usage_above": 80, "percent": 20.0, "up_to": 2**40}
    volume = fake.volumes.add(volume_row("one", labels={"team": "search"}, autogrow=autogrow))
    address = f"{VOLUMES}/{volume.id}"

    assert (await client.patch(address, json={})).status_code == 200
    assert (volume.name, volume.labels, volume.autogrow) == ("one", {"team": "search"}, autogrow)

    shown = (await client.patch(address, json={"name": "two"})).json()
    assert (shown["name"], shown["labels"], shown["autogrow"]) == ("two", {"team": "search"}, autogrow)

    shown = (await client.patch(address, json={"labels": {}, "autogrow": None})).json()
    assert (shown["name"], shown["labels"], shown["autogrow"]) == ("two", {}, None)

    grow = {"usage_above": 90, "by": "1GiB", "up_to": "1TiB"}
    shown = (await client.patch(address, json={"autogrow": grow})).json()
    assert shown["autogrow"] == {"usage_above": 90, "by": 2**30, "up_to": 2**40}


async def test_a_list_is_walked_from_the_newest_to_the_oldest(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(7):
        fake.volumes.add(volume_row(f"v{number}"))

    seen: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"{VOLUMES}?limit=3{cursor and '&cursor='}{cursor}")).json()
        seen.append([volume["name"] for volume in page["items"]])
        cursor = page["next_cursor"]

    assert seen == [["v6", "v5", "v4"], ["v3", "v2", "v1"], ["v0"]]


async def test_a_limit_that_is_too_high_is_lowered(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(201):
        fake.volumes.add(volume_row(f"v{number}"))

    assert len(await names(client, "limit=100000000000000000000")) == 200
    assert len(await names(client, "")) == 50


async def test_a_list_shows_only_what_matches_every_filter(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.volumes.add(volume_row("a", labels={"team": "search", "url": "a:b"}))
    fake.volumes.add(volume_row("b", labels={"team": "search"}, state=VolumeState.ERROR))
    fake.volumes.add(volume_row("c"))

    assert await names(client, "label=team:search") == ["b", "a"]
    assert await names(client, "label=team:search&state=error") == ["b"]
    assert await names(client, "label=team:search&label=url:a:b") == ["a"]
    assert await names(client, "name=c") == ["c"]
    assert await names(client, "name=c&state=error") == []


async def test_the_order_of_labels_does_not_matter_to_a_cursor(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for name in "ab":
        fake.volumes.add(volume_row(name, labels={"x": "1", "y": "2"}))
    cursor = (await client.get(f"{VOLUMES}?limit=1&label=x:1&label=y:2")).json()["next_cursor"]

    assert await names(client, f"label=y:2&label=x:1&cursor={cursor}") == ["a"]
