"""Routes of snapshots: take, get, list, restore, delete, and create a volume from one."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from domain.operations import SnapshotState, VolumeState
from tests.unit.fakes import FakeServices, snapshot_row, volume_row

VOLUMES = "/api/v1/volumes"
SNAPSHOTS = "/api/v1/snapshots"
UNKNOWN = UUID(int=7)


def accepted(response: httpx.Response, kind: str) -> dict[str, Any]:
    job: dict[str, Any] = response.json()
    assert (response.status_code, job["kind"]) == (202, kind), response.text
    assert response.headers["location"] == f"/api/v1/jobs/{job['id']}"
    return job


def rejected(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), response.text
    return problem


async def test_snapshot_is_taken_returned_restored_and_deleted(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    job = accepted(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json={"name": "before"}), "snapshot.take")
    path = f"{SNAPSHOTS}/{job['snapshot_id']}"

    body = (await client.get(path)).json()
    assert (body["name"], body["state"], body["size"]) == ("before", "taking", 8192)
    assert (body["volume_id"], body["job_id"]) == (str(volume.id), job["id"])
    assert volume.state is VolumeState.SNAPSHOTTING

    snapshot = fake.snapshots.rows[UUID(job["snapshot_id"])]
    volume.state, snapshot.state = VolumeState.AVAILABLE, SnapshotState.READY
    accepted(await client.post(f"{path}/restore"), "snapshot.restore")
    assert volume.state is VolumeState.RESTORING

    snapshot.state = SnapshotState.READY
    accepted(await client.delete(path), "snapshot.delete")
    assert snapshot.state is SnapshotState.DELETING


async def test_snapshot_list_is_filtered_by_volume_state_and_name(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    one, two = fake.volumes.add(volume_row("one")), fake.volumes.add(volume_row("two"))
    for volume, name, state in ((one, "a", "ready"), (one, "b", "error"), (two, "a", "ready")):
        fake.snapshots.add(snapshot_row(volume, name, state=SnapshotState(state)))

    async def listed(path: str) -> list[tuple[str, str]]:
        items = (await client.get(path)).json()["items"]
        return [("one" if item["volume_id"] == str(one.id) else "two", item["name"]) for item in items]

    assert await listed(SNAPSHOTS) == [("two", "a"), ("one", "b"), ("one", "a")]
    assert await listed(f"{SNAPSHOTS}?volume_id={one.id}") == [("one", "b"), ("one", "a")]
    assert await listed(f"{SNAPSHOTS}?name=a&state=ready") == [("two", "a"), ("one", "a")]
    assert await listed(f"{VOLUMES}/{one.id}/snapshots") == [("one", "b"), ("one", "a")]
    assert await listed(f"{VOLUMES}/{one.id}/snapshots?state=error") == [("one", "b")]

    page = (await client.get(f"{SNAPSHOTS}?limit=2")).json()
    assert await listed(f"{SNAPSHOTS}?limit=2&cursor={page['next_cursor']}") == [("one", "a")]
    rejected(await client.get(f"{VOLUMES}/{one.id}/snapshots?cursor={page['next_cursor']}"), 422, "bad-cursor")
    rejected(await client.get(f"{VOLUMES}/{UNKNOWN}/snapshots"), 404, "volume-not-found")
    rejected(await client.get(f"{VOLUMES}/{one.id}/snapshots?volume_id={two.id}"), 422, "invalid")


async def test_busy_unusable_or_unknown_snapshot_is_rejected(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    busy = fake.snapshots.add(snapshot_row(volume, "a", state=SnapshotState.CLONING, job_id=uuid4()))
    bad = fake.snapshots.add(snapshot_row(volume, "b", state=SnapshotState.ERROR))
    ready = fake.snapshots.add(snapshot_row(volume, "c"))

    problem = rejected(await client.delete(f"{SNAPSHOTS}/{busy.id}"), 409, "snapshot-busy")
    assert problem["job_id"] == str(busy.job_id)
    rejected(await client.post(f"{SNAPSHOTS}/{busy.id}/restore"), 409, "snapshot-busy")
    rejected(await client.post(f"{SNAPSHOTS}/{bad.id}/restore"), 409, "snapshot-unusable")
    rejected(await client.delete(f"{VOLUMES}/{volume.id}"), 409, "volume-has-snapshots")
    rejected(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json={"name": "c"}), 409, "name-taken")
    volume.state = VolumeState.EXPANDING
    rejected(await client.post(f"{SNAPSHOTS}/{ready.id}/restore"), 409, "volume-busy")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
        rejected(await client.request(method, f"{SNAPSHOTS}/{UNKNOWN}{path}"), 404, "snapshot-not-found")
    rejected(await client.post(f"{VOLUMES}/{UNKNOWN}/snapshots", json={"name": "c"}), 404, "volume-not-found")


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a/b"}, {"name": None}, {"name": "a", "size": 1}, {"name": "a", "allow_torn": 1}],
    ids=repr,
)
async def test_invalid_snapshot_body_is_rejected(
    fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    volume = fake.volumes.add(volume_row())
    rejected(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json=body), 422, "invalid")

    assert not fake.snapshots.rows


async def test_volume_can_be_created_from_a_snapshot(fake: FakeServices, client: httpx.AsyncClient) -> None:
    snapshot = fake.snapshots.add(snapshot_row(fake.volumes.add(volume_row("one", size=8192))))
    source = {"from_snapshot": str(snapshot.id)}

    same = accepted(await client.post(VOLUMES, json={"name": "two"} | source), "snapshot.clone")
    larger = accepted(await client.post(VOLUMES, json={"name": "three", "size": "12KiB"} | source), "snapshot.clone")

    sizes = [fake.volumes.rows[UUID(job["volume_id"])].size for job in (same, larger)]
    assert sizes == [8192, 12288]
    small = await client.post(VOLUMES, json={"name": "four", "size": 1} | source)
    assert [error["field"] for error in rejected(small, 422, "invalid")["errors"]] == ["size"]
    missing = await client.post(VOLUMES, json={"name": "four", "from_snapshot": str(UNKNOWN)})
    rejected(missing, 404, "snapshot-not-found")


async def test_volume_can_be_created_from_a_volume(fake: FakeServices, client: httpx.AsyncClient) -> None:
    source = fake.volumes.add(volume_row("one", size=8192))
    body = {"name": "two", "from_volume": str(source.id), "allow_torn": True}
    job = accepted(await client.post(VOLUMES, json=body), "volume.clone")

    assert job["params"]["allow_torn"] is True
    assert (await client.get(f"{VOLUMES}/{job['volume_id']}")).json()["source"] == {"volume_id": str(source.id)}
    assert (await client.get(f"{VOLUMES}/{source.id}")).json()["source"] is None
    rejected(await client.post(VOLUMES, json={"name": "three", "from_volume": str(source.id)}), 409, "volume-busy")
    rejected(await client.post(VOLUMES, json={"name": "three", "from_volume": str(UNKNOWN)}), 404, "volume-not-found")
    both = await client.post(VOLUMES, json=body | {"from_snapshot": str(UNKNOWN)})
    assert [error["field"] for error in rejected(both, 422, "invalid")["errors"]] == ["from_volume"]


async def test_source_of_a_clone_of_a_snapshot_is_the_snapshot(fake: FakeServices, client: httpx.AsyncClient) -> None:
    clone = fake.volumes.add(volume_row("two", source_snapshot_id=UNKNOWN))

    assert (await client.get(f"{VOLUMES}/{clone.id}")).json()["source"] == {"snapshot_id": str(UNKNOWN)}


async def test_snapshot_has_labels_and_says_what_it_is_worth(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume, labels = fake.volumes.add(volume_row()), {"release": "7.2", "tier": "gold"}
    body = {"name": "a", "labels": labels, "allow_torn": True}
    job = accepted(await client.post(f"{VOLUMES}/{volume.id}/snapshots", json=body), "snapshot.take")
    fake.snapshots.add(snapshot_row(volume, "b", labels={"tier": "gold"}, consistency="crash"))

    assert job["params"]["allow_torn"] is True
    taken = (await client.get(f"{SNAPSHOTS}/{job['snapshot_id']}")).json()
    assert (taken["labels"], taken["consistency"]) == (labels, None)
    listed = (await client.get(f"{SNAPSHOTS}?label=tier:gold")).json()["items"]
    assert [(item["name"], item["consistency"]) for item in listed] == [("b", "crash"), ("a", None)]
    listed = (await client.get(f"{SNAPSHOTS}?label=tier:gold&label=release:7.2")).json()["items"]
    assert [item["name"] for item in listed] == ["a"]
    rejected(await client.get(f"{SNAPSHOTS}?label=tier:gold&label=tier:tin"), 422, "invalid")
    page = (await client.get(f"{SNAPSHOTS}?label=tier:gold&limit=1")).json()
    rejected(await client.get(f"{SNAPSHOTS}?cursor={page['next_cursor']}"), 422, "bad-cursor")


@pytest.mark.parametrize("member", [{"from_snapshot": None}, {"from_snapshot": "a"}, {}, {"size": None}], ids=repr)
async def test_empty_volume_requires_a_size(client: httpx.AsyncClient, member: dict[str, Any]) -> None:
    problem = rejected(await client.post(VOLUMES, json={"name": "a"} | member), 422, "invalid")

    assert "size" in [error["field"] for error in problem["errors"]]


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
async def test_unchanged_volume_or_snapshot_is_304(fake: FakeServices, client: httpx.AsyncClient, kind: str) -> None:
    volume = fake.volumes.add(volume_row())
    snapshot = fake.snapshots.add(snapshot_row(volume))
    row = volume if kind == "volumes" else snapshot
    path = f"/api/v1/{kind}/{row.id}"
    etag = (await client.get(path)).headers["etag"]

    response = await client.get(path, headers={"If-None-Match": etag})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)

    row.version += 1
    assert (await client.get(path, headers={"If-None-Match": etag})).status_code == 200


async def test_relabelled_volume_has_a_new_etag(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    etag = (await client.get(f"{VOLUMES}/{volume.id}")).headers["etag"]
    volume.updated_at = volume.updated_at.replace(microsecond=1)

    assert (await client.get(f"{VOLUMES}/{volume.id}", headers={"If-None-Match": etag})).status_code == 200
