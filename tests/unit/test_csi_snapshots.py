"""The controller of the CSI plugin: snapshots, each call twice, beside jobs at work, and each error for its case."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.csi import csi_pb2 as csi
from tests.unit.csi_client import GIB, NOBODY, Plugin, open_plugin, rejection, status


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    async with open_plugin(tmp_path) as plugin:
        yield plugin


async def ids(plugin: Plugin, **members: Any) -> list[str]:
    """Return the ids of a list of snapshots."""
    listed = await plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(**members))
    return [entry.snapshot.snapshot_id for entry in listed.entries]


class TestCreate:
    async def test_snapshot_is_ready_and_says_what_it_was_taken_of(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        parameters = {"labels": "team=search", "allow_torn": "true", "csi.storage.k8s.io/volumesnapshot/name": "daily"}
        snapshot = await plugin.snapshot(volume, parameters=parameters)

        assert (snapshot.source_volume_id, snapshot.size_bytes, snapshot.ready_to_use) == (volume.volume_id, GIB, True)
        assert snapshot.creation_time.ToJsonString() == "2026-03-01T12:00:00Z"
        row = plugin.cistern.snapshots[snapshot.snapshot_id]
        assert row["allow_torn"] is True
        assert row["labels"] == {"team": "search", "csi.storage.k8s.io/volumesnapshot/name": "daily"}

    async def test_same_request_twice_takes_one_snapshot(self, plugin: Plugin) -> None:
        volume = await plugin.volume()

        assert await plugin.snapshot(volume) == await plugin.snapshot(volume)
        assert len(plugin.cistern.snapshots) == 1

    async def test_concurrent_same_requests_take_one_snapshot(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        snapshots = await asyncio.gather(*(plugin.snapshot(volume) for _ in range(20)))

        assert {one.snapshot_id for one in snapshots} == set(plugin.cistern.snapshots)
        assert len(plugin.cistern.snapshots) == 1

    async def test_snapshot_that_another_call_takes_in_between_is_the_same(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        path, body = f"/volumes/{volume.volume_id}/snapshots", {"name": "snapshot-1"}
        plugin.cistern.meanwhile = ("POST", path, lambda: plugin.cistern.request("POST", path, body=body))
        snapshot = await plugin.snapshot(volume)

        assert [*plugin.cistern.snapshots] == [snapshot.snapshot_id]

    async def test_name_is_taken_if_another_volume_has_it(self, plugin: Plugin) -> None:
        await plugin.snapshot(await plugin.volume())

        assert await status(plugin.snapshot(await plugin.volume("pvc-2"))) == "ALREADY_EXISTS"

    async def test_job_at_work_is_found_by_the_repeated_call(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.held = {"snapshot.take"}
        first, second = await rejection(plugin.snapshot(volume)), await rejection(plugin.snapshot(volume))
        job_id = [*plugin.cistern.jobs][-1]

        assert first == second == ("ABORTED", f"job {job_id} is still at work; call again")
        assert await ids(plugin) == []
        plugin.cistern.release()
        assert (await plugin.snapshot(volume)).ready_to_use
        assert len(plugin.cistern.jobs) == 2

    async def test_failed_snapshot_is_taken_anew_by_the_next_call(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.failing = {"snapshot.take": "storage-full"}
        assert await status(plugin.snapshot(volume)) == "RESOURCE_EXHAUSTED"
        assert await ids(plugin) == []
        plugin.cistern.failing = {}
        plugin.cistern.volumes[volume.volume_id]["state"] = "available"

        snapshot = await plugin.snapshot(volume)
        assert [*plugin.cistern.snapshots] == [snapshot.snapshot_id]

    async def test_busy_volume_is_waited_for(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.held = {"volume.expand"}
        expand = csi.ControllerExpandVolumeRequest(
            volume_id=volume.volume_id, capacity_range=csi.CapacityRange(required_bytes=2 * GIB)
        )
        assert await status(plugin.controller.ControllerExpandVolume(expand)) == "ABORTED"
        assert await status(plugin.snapshot(volume)) == "ABORTED"
        plugin.cistern.release()

        assert (await plugin.snapshot(volume)).size_bytes == 2 * GIB

    async def test_request_must_be_complete_and_about_a_volume(self, plugin: Plugin) -> None:
        volume = await plugin.volume()

        assert await status(plugin.snapshot(volume, "")) == "INVALID_ARGUMENT"
        assert await status(plugin.snapshot(csi.Volume())) == "INVALID_ARGUMENT"
        assert await status(plugin.snapshot(volume, "a b")) == "INVALID_ARGUMENT"
        assert await status(plugin.snapshot(volume, parameters={"allow_torn": "1"})) == "INVALID_ARGUMENT"
        assert await status(plugin.snapshot(volume, parameters={"torn": "true"})) == "INVALID_ARGUMENT"
        assert await status(plugin.snapshot(csi.Volume(volume_id=NOBODY))) == "NOT_FOUND"

    async def test_name_may_have_128_characters(self, plugin: Plugin) -> None:
        assert (await plugin.snapshot(await plugin.volume(), "s" * 128)).ready_to_use


class TestDelete:
    async def test_snapshot_is_deleted_and_deleted_again(self, plugin: Plugin) -> None:
        snapshot = await plugin.snapshot(await plugin.volume())

        for _ in range(2):
            await plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id))
        assert plugin.cistern.snapshots == {}

    async def test_malformed_id_has_been_deleted_and_a_missing_one_is_invalid(self, plugin: Plugin) -> None:
        await plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id="reallyfakesnapshotid"))

        assert await status(plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest())) == "INVALID_ARGUMENT"

    async def test_deletion_at_work_is_found_by_the_repeated_call(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        request = csi.DeleteSnapshotRequest(snapshot_id=(await plugin.snapshot(volume)).snapshot_id)
        plugin.cistern.held = {"snapshot.delete"}
        first = await rejection(plugin.controller.DeleteSnapshot(request))
        second = await rejection(plugin.controller.DeleteSnapshot(request))

        assert (first, first[0]) == (second, "ABORTED")
        assert await status(plugin.snapshot(volume)) == "ABORTED"
        plugin.cistern.release()
        await plugin.controller.DeleteSnapshot(request)
        assert plugin.cistern.snapshots == {}


class TestList:
    async def test_list_is_of_all_or_one_volume_or_one_snapshot(self, plugin: Plugin) -> None:
        volumes = [await plugin.volume(name) for name in ("pvc-1", "pvc-2")]
        first, second = [(await plugin.snapshot(one, f"of-{one.volume_id}")).snapshot_id for one in volumes]
        of_first = volumes[0].volume_id

        assert await ids(plugin) == [second, first]
        assert await ids(plugin, source_volume_id=of_first) == [first]
        assert await ids(plugin, snapshot_id=second) == [second]
        assert await ids(plugin, snapshot_id=first, source_volume_id=of_first) == [first]
        assert await ids(plugin, snapshot_id=second, source_volume_id=of_first) == []

    @pytest.mark.parametrize("missing", [NOBODY, "none"])
    async def test_list_of_what_does_not_exist_is_empty(self, plugin: Plugin, missing: str) -> None:
        await plugin.snapshot(await plugin.volume())

        assert await ids(plugin, snapshot_id=missing) == []
        assert await ids(plugin, source_volume_id=missing) == []

    async def test_list_has_pages(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        taken = [(await plugin.snapshot(volume, f"s-{number}")).snapshot_id for number in range(5)]
        found, token = [], ""
        while True:
            request = csi.ListSnapshotsRequest(max_entries=2, starting_token=token)
            page = await plugin.controller.ListSnapshots(request)
            assert len(page.entries) <= 2
            found += [entry.snapshot.snapshot_id for entry in page.entries]
            if not (token := page.next_token):
                break

        assert found == taken[::-1]

    async def test_bad_page_is_refused(self, plugin: Plugin) -> None:
        listing = plugin.controller.ListSnapshots

        assert await status(listing(csi.ListSnapshotsRequest(starting_token="other"))) == "ABORTED"
        assert await status(listing(csi.ListSnapshotsRequest(max_entries=-1))) == "INVALID_ARGUMENT"
