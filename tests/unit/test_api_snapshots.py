"""Snapshots over HTTP: take, list, restore, delete, and volumes that begin with one."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from domain.snapshots.states import SnapshotState
from domain.volumes.states import VolumeState
from tests.unit.fakes import FakeServices, snapshot_row, volume_row

VOLUMES = "/api/v1/volumes"
SNAPSHOTS = "/api/v1/snapshots"
UNKNOWN = UUID(int=7)


def accepted(answer: httpx.Response, kind: str) -> dict[str, Any]:
    job: dict[str, Any] = answer.json()
    assert (answer.status_code, job["kind"]) == (202, kind), answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    return job


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), answer.text
    return told


async def test_a_snapshot_is_taken_shown_restored_and_deleted(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    job = accepted(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json={"name": "before"}), "snapshot.take")
    address = f"{SNAPSHOTS}/{job['snapshot_id']}"

    shown = (await client.get(address)).json()
    assert (shown["name"], shown["state"], shown["size"]) == ("before", "taking", 1024)
    assert (shown["volume_id"], shown["job_id"]) == (str(volume.id), job["id"])
    assert volume.state is VolumeState.SNAPSHOTTING

    snapshot = fake.snapshots.rows[UUID(job["snapshot_id"])]
    volume.state, snapshot.state = VolumeState.AVAILABLE, SnapshotState.READY
    accepted(await client.post(f"{address}/restore"), "snapshot.restore")
    assert volume.state is VolumeState.RESTORING

    snapshot.state = SnapshotState.READY
    accepted(await client.delete(address), "snapshot.delete")
    assert snapshot.state is SnapshotState.DELETING


async def test_snapshots_are_listed_by_volume_state_and_name(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one, two = fake.volumes.add(volume_row("one")), fake.volumes.add(volume_row("two"))
    for volume, name, state in ((one, "a", "ready"), (one, "b", "error"), (two, "a", "ready")):
        fake.snapshots.add(snapshot_row(volume, name, state=SnapshotState(state)))

    async def listed(address: str) -> list[tuple[str, str]]:
        items = (await client.get(address)).json()["items"]
        return [("one" if item["volume_id"] == str(one.id) else "two", item["name"]) for item in items]

    assert await listed(SNAPSHOTS) == [("two", "a"), ("one", "b"), ("one", "a")]
    assert await listed(f"{SNAPSHOTS}?volume_id={one.id}") == [("one", "b"), ("one", "a")]
    assert await listed(f"{SNAPSHOTS}?name=a&state=ready") == [("two", "a"), ("one", "a")]
    assert await listed(f"{VOLUMES}/{one.id}/snapshots") == [("one", "b"), ("one", "a")]
    assert await listed(f"{VOLUMES}/{one.id}/snapshots?state=error") == [("one", "b")]

    page = (await client.get(f"{SNAPSHOTS}?limit=2")).json()
    assert await listed(f"{SNAPSHOTS}?limit=2&cursor={page['next_cursor']}") == [("one", "a")]
    refused(await client.get(f"{VOLUMES}/{one.id}/snapshots?cursor={page['next_cursor']}"), 422, "bad-cursor")
    refused(await client.get(f"{VOLUMES}/{UNKNOWN}/snapshots"), 404, "volume-not-found")
    refused(await client.get(f"{VOLUMES}/{one.id}/snapshots?volume_id={two.id}"), 422, "invalid")


async def test_what_is_busy_unusable_or_missing_is_refused_by_name(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    volume = fake.volumes.add(volume_row())
    busy = fake.snapshots.add(snapshot_row(volume, "a", state=SnapshotState.CLONING, job_id=uuid4()))
    bad = fake.snapshots.add(snapshot_row(volume, "b", state=SnapshotState.ERROR))
    ready = fake.snapshots.add(snapshot_row(volume, "c"))

    told = refused(await client.delete(f"{SNAPSHOTS}/{busy.id}"), 409, "snapshot-busy")
    assert told["job_id"] == str(busy.job_id)
    refused(await client.post(f"{SNAPSHOTS}/{busy.id}/restore"), 409, "snapshot-busy")
    refused(await client.post(f"{SNAPSHOTS}/{bad.id}/restore"), 409, "snapshot-unusable")
    refused(await client.delete(f"{VOLUMES}/{volume.id}"), 409, "volume-has-snapshots")
    refused(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json={"name": "c"}), 409, "name-taken")
    volume.state = VolumeState.EXPANDING
    refused(await client.post(f"{SNAPSHOTS}/{ready.id}/restore"), 409, "volume-busy")
    for method, address in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
        refused(await client.request(method, f"{SNAPSHOTS}/{UNKNOWN}{address}"), 404, "snapshot-not-found")
    refused(await client.post(f"{VOLUMES}/{UNKNOWN}/snapshots", json={"name": "c"}), 404, "volume-not-found")


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a/b"}, {"name": None}, {"name": "a", "size": 1}], ids=repr
)
async def test_a_bad_snapshot_is_refused(fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    volume = fake.volumes.add(volume_row())
    refused(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json=body), 422, "invalid")

    assert not fake.snapshots.rows


async def test_a_volume_may_begin_with_a_snapshot(fake: FakeServices, client: httpx.AsyncClient) -> None:
    snapshot = fake.snapshots.add(snapshot_row(fake.volumes.add(volume_row("one", size=1024))))
    wish = {"from_snapshot": str(snapshot.id)}

    same = accepted(await client.post(VOLUMES, json={"name": "two"} | wish), "snapshot.clone")
    larger = accepted(await client.post(VOLUMES, json={"name": "three", "size": "4KiB"} | wish), "snapshot.clone")

    sizes = [fake.volumes.rows[UUID(job["volume_id"])].size for job in (same, larger)]
    assert sizes == [1024, 4096]
    small = await client.post(VOLUMES, json={"name": "four", "size": 1} | wish)
    assert [error["field"] for error in refused(small, 422, "invalid")["errors"]] == ["size"]
    missing = await client.post(VOLUMES, json={"name": "four", "from_snapshot": str(UNKNOWN)})
    refused(missing, 404, "snapshot-not-found")


@pytest.mark.parametrize("member", [{"from_snapshot": None}, {"from_snapshot": "a"}, {}, {"size": None}], ids=repr)
async def test_a_volume_from_nothing_needs_a_size(client: httpx.AsyncClient, member: dict[str, Any]) -> None:
    told = refused(await client.post(VOLUMES, json={"name": "a"} | member), 422, "invalid")

    assert "size" in [error["field"] for error in told["errors"]]


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
async def test_a_thing_that_has_not_changed_is_not_sent_again(
    fake: FakeServices, client: httpx.AsyncClient, kind: str
) -> None:
    volume = fake.volumes.add(volume_row())
    snapshot = fake.snapshots.add(snapshot_row(volume))
    row = volume if kind == "volumes" else snapshot
    address = f"/api/v1/{kind}/{row.id}"
    etag = (await client.get(address)).headers["etag"]

    answer = await client.get(address, headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)

    row.version += 1
    assert (await client.get(address, headers={"If-None-Match": etag})).status_code == 200


async def test_a_relabelled_volume_has_changed(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    etag = (await client.get(f"{VOLUMES}/{volume.id}")).headers["etag"]
    volume.updated_at = volume.updated_at.replace(microsecond=1)

    assert (await client.get(f"{VOLUMES}/{volume.id}", headers={"If-None-Match": etag})).status_code == 200
