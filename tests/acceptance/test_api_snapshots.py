"""What a client can rely on with snapshots: the bytes, on real files, through real processes."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.cluster import Cluster
from tests.acceptance.test_http import MIB, client, created

WAIT = {"Prefer": "wait=30"}


async def done(http: httpx.AsyncClient, method: str, address: str, **body: Any) -> dict[str, Any]:
    answer = await http.request(method, address, json=body or None, headers=WAIT)
    job: dict[str, Any] = answer.json()
    assert (answer.status_code, job["status"]) == (202, "succeeded"), answer.text
    return job


async def test_take_overwrite_expand_restore_is_the_old_bytes_and_the_new_size(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "a", 2 * MIB)
        address, data = f"/volumes/{volume['id']}", Path(volume["path"])
        old = os.urandom(2 * MIB)
        data.write_bytes(old)

        taken = await done(http, "POST", f"{address}/snapshots", name="before")
        assert taken["progress"]["unit"] == "bytes"
        assert taken["progress"]["succeeded"] == taken["progress"]["total"]
        data.write_bytes(os.urandom(2 * MIB))
        await done(http, "POST", f"{address}/expand", to=3 * MIB)
        await done(http, "POST", f"/snapshots/{taken['snapshot_id']}/restore")

        restored = (await http.get(address)).json()
        assert (restored["state"], restored["size"]) == ("available", 3 * MIB)
        assert await asyncio.to_thread(Path(restored["path"]).read_bytes) == old + bytes(MIB)


async def test_a_clone_has_the_snapshots_bytes_and_is_independent_afterwards(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "a")
        old = os.urandom(MIB)
        Path(volume["path"]).write_bytes(old)
        snapshot_id = (await done(http, "POST", f"/volumes/{volume['id']}/snapshots", name="s"))["snapshot_id"]

        job = await done(http, "POST", "/volumes", name="b", from_snapshot=snapshot_id, size=2 * MIB)
        clone = (await http.get(f"/volumes/{job['volume_id']}")).json()
        assert Path(clone["path"]).read_bytes() == old + bytes(MIB)

        Path(clone["path"]).write_bytes(bytes(2 * MIB))
        await done(http, "POST", f"/snapshots/{snapshot_id}/restore")
        assert Path(volume["path"]).read_bytes() == old

        refused = await http.delete(f"/volumes/{volume['id']}")
        assert (refused.status_code, refused.json()["code"]) == (409, "volume-has-snapshots")
        await done(http, "DELETE", f"/snapshots/{snapshot_id}")
        await done(http, "DELETE", f"/volumes/{volume['id']}")
        assert Path(clone["path"]).read_bytes() == bytes(2 * MIB)


async def test_version_0_does_it_all_without_a_job_to_poll(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        v0 = str(http.base_url).replace("v1", "v0")
        made = await http.post(f"{v0}volumes", json={"name": "a", "size": "1MiB"})
        assert (made.status_code, made.json()["state"]) == (201, "available")
        address, data = f"{v0}volumes/{made.json()['id']}", Path(made.json()["path"])
        data.write_bytes(b"x" * MIB)

        grown = await http.post(f"{address}/expand", json={"to": "2MiB"})
        assert (grown.status_code, grown.json()["size"], data.stat().st_size) == (200, 2 * MIB, 2 * MIB)
        fleet = await http.post(f"{v0}volumes/expand")
        assert (fleet.status_code, fleet.json()["status"], fleet.json()["progress"]["succeeded"]) == (
            200,
            "succeeded",
            1,
        )
        assert (await http.get(address)).json()["size"] == 3 * MIB  # ten percent more, in whole mebibytes

        taken = await http.post(f"{address}/snapshots", json={"name": "s"})
        assert (taken.status_code, taken.json()["state"]) == (201, "ready")
        data.write_bytes(bytes(3 * MIB))
        restored = await http.post(f"{v0}snapshots/{taken.json()['id']}/restore")
        assert (restored.status_code, restored.json()["state"]) == (200, "available")
        assert Path(restored.json()["path"]).read_bytes() == b"x" * MIB + bytes(2 * MIB)

        assert (await http.delete(f"{v0}snapshots/{taken.json()['id']}")).status_code == 204
        assert (await http.delete(address)).status_code == 204
        assert (await http.get(address)).status_code == 404
