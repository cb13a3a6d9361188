"""Snapshots over HTTP, through real processes: the bytes in the files are those of the snapshot."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.cluster import Cluster
from tests.acceptance.test_http import MIB, client, created

WAIT = {"Prefer": "wait=30"}


async def succeeded(http: httpx.AsyncClient, method: str, path: str, **body: Any) -> dict[str, Any]:
    """Send a request, and return its job, which must have succeeded."""
    response = await http.request(method, path, json=body or None, headers=WAIT)
    job: dict[str, Any] = response.json()
    assert (response.status_code, job["status"]) == (202, "succeeded"), response.text
    return job


async def test_restore_after_expand_has_the_old_bytes_and_the_new_size(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "a", 2 * MIB)
        path, data = f"/volumes/{volume['id']}", Path(volume["path"])
        old = os.urandom(2 * MIB)
        data.write_bytes(old)

        taken = await succeeded(http, "POST", f"{path}/snapshots", name="before")
        assert taken["progress"]["unit"] == "bytes"
        assert taken["progress"]["succeeded"] == taken["progress"]["total"]
        data.write_bytes(os.urandom(2 * MIB))
        await succeeded(http, "POST", f"{path}/expand", to=3 * MIB)
        await succeeded(http, "POST", f"/snapshots/{taken['snapshot_id']}/restore")

        restored = (await http.get(path)).json()
        assert (restored["state"], restored["size"]) == ("available", 3 * MIB)
        assert await asyncio.to_thread(Path(restored["path"]).read_bytes) == old + bytes(MIB)


async def test_clone_has_the_bytes_of_the_snapshot_and_is_independent(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "a")
        old = os.urandom(MIB)
        Path(volume["path"]).write_bytes(old)
        snapshot_id = (await succeeded(http, "POST", f"/volumes/{volume['id']}/snapshots", name="s"))["snapshot_id"]

        job = await succeeded(http, "POST", "/volumes", name="b", from_snapshot=snapshot_id, size=2 * MIB)
        clone = (await http.get(f"/volumes/{job['volume_id']}")).json()
        assert Path(clone["path"]).read_bytes() == old + bytes(MIB)

        Path(clone["path"]).write_bytes(bytes(2 * MIB))
        await succeeded(http, "POST", f"/snapshots/{snapshot_id}/restore")
        assert Path(volume["path"]).read_bytes() == old

        rejected = await http.delete(f"/volumes/{volume['id']}")
        assert (rejected.status_code, rejected.json()["code"]) == (409, "volume-has-snapshots")
        await succeeded(http, "DELETE", f"/snapshots/{snapshot_id}")
        await succeeded(http, "DELETE", f"/volumes/{volume['id']}")
        assert Path(clone["path"]).read_bytes() == bytes(2 * MIB)


async def test_version_0_supports_every_operation_without_polling(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        v0 = str(http.base_url).replace("v1", "v0")
        creation = await http.post(f"{v0}volumes", json={"name": "a", "size": "1MiB"})
        assert (creation.status_code, creation.json()["state"]) == (201, "available")
        path, data = f"{v0}volumes/{creation.json()['id']}", Path(creation.json()["path"])
        data.write_bytes(b"x" * MIB)

        grown = await http.post(f"{path}/expand", json={"to": "2MiB"})
        assert (grown.status_code, grown.json()["size"], data.stat().st_size) == (200, 2 * MIB, 2 * MIB)
        expansion = await http.post(f"{v0}volumes/expand", json={"percent": 10})
        assert (expansion.status_code, expansion.json()["status"], expansion.json()["progress"]["succeeded"]) == (
            200,
            "succeeded",
            1,
        )
        assert (await http.get(path)).json()["size"] == 3 * MIB  # ten percent more, rounded up to whole MiB

        taken = await http.post(f"{path}/snapshots", json={"name": "s"})
        assert (taken.status_code, taken.json()["state"]) == (201, "ready")
        data.write_bytes(bytes(3 * MIB))
        restored = await http.post(f"{v0}snapshots/{taken.json()['id']}/restore")
        assert (restored.status_code, restored.json()["state"]) == (200, "available")
        assert Path(restored.json()["path"]).read_bytes() == b"x" * MIB + bytes(2 * MIB)

        assert (await http.delete(f"{v0}snapshots/{taken.json()['id']}")).status_code == 204
        assert (await http.delete(path)).status_code == 204
        assert (await http.get(path)).status_code == 404
