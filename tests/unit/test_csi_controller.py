"""The controller of the CSI plugin: volumes, each call twice, beside jobs at work, and each error for its case."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.csi import csi_pb2 as csi
from domain.volumes.model import MAX_SIZE
from tests.unit.csi_client import (
    GIB,
    MIB,
    NOBODY,
    Mode,
    Plugin,
    block,
    from_snapshot,
    from_volume,
    mount,
    open_plugin,
    rejection,
    size,
    status,
)


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    async with open_plugin(tmp_path) as plugin:
        yield plugin


class TestCreate:
    async def test_created_volume_has_the_name_the_size_and_a_file_system(self, plugin: Plugin) -> None:
        parameters = {
            "backend": "null",
            "labels": "team=search, tier=gold",
            "autogrow": "80:20%:1Ti",
            "csi.storage.k8s.io/pvc/name": "data",
        }
        volume = await plugin.volume(volume_capabilities=[mount("xfs")], parameters=parameters)

        ((volume_id, row),) = plugin.cistern.volumes.items()
        assert (volume.volume_id, volume.capacity_bytes) == (volume_id, GIB)
        assert (row["name"], row["filesystem"], row["backend"]) == ("pvc-1", "xfs", "null")
        assert row["labels"] == {"team": "search", "tier": "gold", "csi.storage.k8s.io/pvc/name": "data"}
        assert row["autogrow"] == {"usage_above": 80, "percent": 20, "up_to": "1TiB"}

    async def test_autogrow_may_grow_by_an_amount(self, plugin: Plugin) -> None:
        await plugin.volume(parameters={"autogrow": "90%:10GiB:500GiB"})

        (row,) = plugin.cistern.volumes.values()
        assert row["autogrow"] == {"usage_above": 90, "by": "10GiB", "up_to": "500GiB"}

    async def test_file_system_may_be_a_parameter(self, plugin: Plugin) -> None:
        await plugin.volume(parameters={"csi.storage.k8s.io/fstype": "btrfs"})

        assert [one["filesystem"] for one in plugin.cistern.volumes.values()] == ["btrfs"]

    @pytest.mark.parametrize(
        ("capacity", "filesystem", "expected"),
        [
            (size(), "ext4", GIB),
            (size(limit=512 * MIB), "ext4", 512 * MIB),
            (size(1), "xfs", 300 * MIB),
            (size(GIB + 1, GIB + 4096), "ext4", GIB + 4096),
            (size(2 * GIB, 2 * GIB), "ext4", 2 * GIB),
        ],
    )
    async def test_size_is_the_smallest_in_the_range(
        self, plugin: Plugin, capacity: csi.CapacityRange, filesystem: str, expected: int
    ) -> None:
        volume = await plugin.volume(capacity_range=capacity, volume_capabilities=[mount(filesystem)])

        assert volume.capacity_bytes == expected

    async def test_same_request_twice_creates_one_volume(self, plugin: Plugin) -> None:
        assert await plugin.volume() == await plugin.volume()
        assert len(plugin.cistern.jobs) == 1

    async def test_concurrent_same_requests_create_one_volume(self, plugin: Plugin) -> None:
        volumes = await asyncio.gather(*(plugin.volume() for _ in range(20)))

        assert {one.volume_id for one in volumes} == set(plugin.cistern.volumes)
        assert len(plugin.cistern.volumes) == 1

    async def test_volume_that_another_call_creates_in_between_is_the_same(self, plugin: Plugin) -> None:
        body = {"name": "pvc-1", "size": GIB, "filesystem": "ext4"}
        plugin.cistern.held = {"volume.create"}
        plugin.cistern.meanwhile = ("POST", "/volumes", lambda: plugin.cistern.request("POST", "/volumes", body=body))
        (code, message), (job_id,) = await rejection(plugin.volume()), plugin.cistern.jobs
        assert (code, job_id in message) == ("ABORTED", True)
        plugin.cistern.release()
        volume = await plugin.volume()

        assert [*plugin.cistern.volumes] == [volume.volume_id]

    async def test_volume_that_another_call_creates_in_between_may_differ(self, plugin: Plugin) -> None:
        body = {"name": "pvc-1", "size": GIB, "filesystem": "xfs"}
        plugin.cistern.meanwhile = ("POST", "/volumes", lambda: plugin.cistern.request("POST", "/volumes", body=body))

        assert await status(plugin.volume()) == "ALREADY_EXISTS"

    @pytest.mark.parametrize(
        "members",
        [
            {"capacity_range": size(2 * GIB)},
            {"capacity_range": size(limit=GIB // 2)},
            {"volume_capabilities": [mount("xfs")]},
            {"parameters": {"backend": "null"}},
        ],
    )
    async def test_name_of_a_different_volume_is_taken(self, plugin: Plugin, members: dict[str, Any]) -> None:
        await plugin.volume(parameters={"backend": "local"})

        assert await status(plugin.volume(**members)) == "ALREADY_EXISTS"

    async def test_name_of_an_empty_volume_is_taken_for_a_clone(self, plugin: Plugin) -> None:
        source = await plugin.volume()
        await plugin.volume("pvc-2")
        call = plugin.volume("pvc-2", volume_content_source=from_volume(source.volume_id))

        assert await status(call) == "ALREADY_EXISTS"

    async def test_volume_that_has_grown_is_still_the_same(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.volumes[volume.volume_id]["size"] = 3 * GIB

        assert (await plugin.volume()).capacity_bytes == 3 * GIB

    async def test_job_at_work_is_found_by_the_repeated_call(self, plugin: Plugin) -> None:
        plugin.cistern.held = {"volume.create"}
        first, second = await rejection(plugin.volume()), await rejection(plugin.volume())
        (job_id,) = plugin.cistern.jobs

        assert first == second == ("ABORTED", f"job {job_id} is still at work; call again")
        plugin.cistern.release()
        assert (await plugin.volume()).capacity_bytes == GIB
        assert len(plugin.cistern.jobs) == 1

    async def test_failed_creation_is_tried_again_by_the_next_call(self, plugin: Plugin) -> None:
        plugin.cistern.failing = {"volume.create": "storage-full"}
        code, message = await rejection(plugin.volume())
        assert (code, "The storage said no. (storage-full)" in message) == ("RESOURCE_EXHAUSTED", True)
        assert await status(plugin.volume()) == "RESOURCE_EXHAUSTED"
        plugin.cistern.failing = {}

        volume = await plugin.volume()
        assert [*plugin.cistern.volumes] == [volume.volume_id]
        assert len(plugin.cistern.jobs) == 3

    async def test_volume_that_another_job_has_broken_is_not_created_again(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.failing = {"volume.expand": "storage-full"}
        request = csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size(2 * GIB))
        assert await status(plugin.controller.ControllerExpandVolume(request)) == "RESOURCE_EXHAUSTED"

        assert await status(plugin.volume()) == "FAILED_PRECONDITION"

    async def test_volume_that_is_being_deleted_is_waited_for(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.held = {"volume.delete"}
        request = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
        assert await status(plugin.controller.DeleteVolume(request)) == "ABORTED"

        assert await status(plugin.volume()) == "ABORTED"
        plugin.cistern.release()
        assert (await plugin.volume()).volume_id != volume.volume_id

    async def test_name_may_have_128_characters(self, plugin: Plugin) -> None:
        assert (await plugin.volume("v" * 128)).volume_id
        assert await status(plugin.volume("v" * 129)) == "INVALID_ARGUMENT"

    @pytest.mark.parametrize(
        ("name", "members"),
        [
            ("", {}),
            ("a b", {}),
            ("pvc", {"volume_capabilities": []}),
            ("pvc", {"volume_capabilities": [csi.VolumeCapability(access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))]}),
            ("pvc", {"volume_capabilities": [mount(mode=Mode.UNKNOWN)]}),
            ("pvc", {"volume_capabilities": [mount(mode=Mode.MULTI_NODE_MULTI_WRITER)]}),
            ("pvc", {"volume_capabilities": [mount("zfs")]}),
            ("pvc", {"volume_capabilities": [mount(mount_flags=["noatime"])]}),
            ("pvc", {"volume_capabilities": [mount(volume_mount_group="100")]}),
            ("pvc", {"volume_capabilities": [mount("xfs"), mount("ext4")]}),
            ("pvc", {"volume_capabilities": [mount("xfs")], "parameters": {"csi.storage.k8s.io/fstype": "ext4"}}),
            ("pvc", {"volume_capabilities": [block()]}),
            ("pvc", {"parameters": {"csi.storage.k8s.io/fstype": "zfs"}}),
            ("pvc", {"parameters": {"Backend": "local"}}),
            ("pvc", {"parameters": {"backend": "tape"}}),
            ("pvc", {"parameters": {"labels": "team"}}),
            ("pvc", {"parameters": {"autogrow": "80:20%"}}),
            ("pvc", {"parameters": {"autogrow": "much:20%:1TiB"}}),
            ("pvc", {"mutable_parameters": {"iops": "1"}}),
        ],
    )
    async def test_invalid_request_is_refused(self, plugin: Plugin, name: str, members: dict[str, Any]) -> None:
        assert await status(plugin.volume(name, **members)) == "INVALID_ARGUMENT"
        assert plugin.cistern.volumes == {}

    @pytest.mark.parametrize(
        ("capacity", "filesystem"),
        [
            (size(2 * GIB, GIB), "ext4"),
            (size(-1), "ext4"),
            (size(GIB + 1, GIB + 2), "ext4"),
            (size(limit=100 * MIB), "xfs"),
            (size(MAX_SIZE + 1), "ext4"),
        ],
    )
    async def test_impossible_size_is_out_of_range(
        self, plugin: Plugin, capacity: csi.CapacityRange, filesystem: str
    ) -> None:
        call = plugin.volume(capacity_range=capacity, volume_capabilities=[mount(filesystem)])

        assert await status(call) == "OUT_OF_RANGE"

    async def test_request_beyond_the_quota_exhausts_the_resources(self, plugin: Plugin) -> None:
        assert await status(plugin.volume(capacity_range=size(101 * GIB))) == "RESOURCE_EXHAUSTED"


class TestCreateFromSource:
    async def test_clone_of_a_snapshot_has_its_file_system_and_says_where_it_is_from(self, plugin: Plugin) -> None:
        source = await plugin.volume(volume_capabilities=[mount("xfs")])
        content = from_snapshot((await plugin.snapshot(source)).snapshot_id)

        clone = await plugin.volume("pvc-2", capacity_range=size(2 * GIB), volume_content_source=content)
        assert (clone.content_source, clone.capacity_bytes) == (content, 2 * GIB)
        assert clone == await plugin.volume("pvc-2", capacity_range=size(2 * GIB), volume_content_source=content)
        assert plugin.cistern.volumes[clone.volume_id]["filesystem"] == "xfs"

    async def test_clone_of_a_volume_is_at_least_as_large(self, plugin: Plugin) -> None:
        content = from_volume((await plugin.volume()).volume_id)
        clone = await plugin.volume("pvc-2", capacity_range=size(1), volume_content_source=content)

        assert (clone.content_source, clone.capacity_bytes) == (content, GIB)
        assert clone == await plugin.volume("pvc-2", capacity_range=size(1), volume_content_source=content)

    async def test_clone_of_another_source_is_another_volume(self, plugin: Plugin) -> None:
        first, second = await plugin.volume(), await plugin.volume("pvc-2")
        snapshot = await plugin.snapshot(first)
        await plugin.volume("clone", volume_content_source=from_volume(first.volume_id))

        for other in (from_volume(second.volume_id), from_snapshot(snapshot.snapshot_id), None):
            assert await status(plugin.volume("clone", volume_content_source=other)) == "ALREADY_EXISTS"

    async def test_clone_smaller_than_its_source_is_out_of_range(self, plugin: Plugin) -> None:
        content = from_volume((await plugin.volume()).volume_id)

        for name in ("pvc-2", "pvc-1"):
            call = plugin.volume(name, capacity_range=size(1, GIB - 1), volume_content_source=content)
            assert await status(call) == "OUT_OF_RANGE"

    @pytest.mark.parametrize("missing", [NOBODY, "none"])
    async def test_missing_source_is_not_found(self, plugin: Plugin, missing: str) -> None:
        for content in (from_snapshot(missing), from_volume(missing)):
            assert await status(plugin.volume(volume_content_source=content)) == "NOT_FOUND"

    async def test_clone_cannot_have_another_file_system(self, plugin: Plugin) -> None:
        content = from_volume((await plugin.volume()).volume_id)
        call = plugin.volume("pvc-2", volume_capabilities=[mount("xfs")], volume_content_source=content)

        assert await status(call) == "INVALID_ARGUMENT"

    async def test_source_without_a_file_system_is_refused(self, plugin: Plugin) -> None:
        source = await plugin.volume()
        plugin.cistern.volumes[source.volume_id]["filesystem"] = None
        call = plugin.volume("pvc-2", volume_content_source=from_volume(source.volume_id))

        assert await status(call) == "INVALID_ARGUMENT"

    async def test_source_that_is_not_ready_is_waited_for(self, plugin: Plugin) -> None:
        source = await plugin.volume()
        plugin.cistern.held = {"snapshot.take", "volume.create"}
        assert await status(plugin.snapshot(source)) == "ABORTED"
        assert await status(plugin.volume("pvc-2")) == "ABORTED"
        ids = {one["name"]: one["id"] for one in (*plugin.cistern.volumes.values(), *plugin.cistern.snapshots.values())}

        for content in (from_snapshot(ids["snapshot-1"]), from_volume(ids["pvc-2"])):
            assert await status(plugin.volume("pvc-3", volume_content_source=content)) == "ABORTED"


class TestDelete:
    async def test_volume_is_deleted_and_deleted_again(self, plugin: Plugin) -> None:
        request = csi.DeleteVolumeRequest(volume_id=(await plugin.volume()).volume_id)

        for _ in range(2):
            await plugin.controller.DeleteVolume(request)
        assert plugin.cistern.volumes == {}

    async def test_malformed_id_has_been_deleted_and_a_missing_one_is_invalid(self, plugin: Plugin) -> None:
        await plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id="reallyfakevolumeid"))

        assert await status(plugin.controller.DeleteVolume(csi.DeleteVolumeRequest())) == "INVALID_ARGUMENT"

    async def test_deletion_at_work_is_found_by_the_repeated_call(self, plugin: Plugin) -> None:
        request = csi.DeleteVolumeRequest(volume_id=(await plugin.volume()).volume_id)
        plugin.cistern.held = {"volume.delete"}
        first = await rejection(plugin.controller.DeleteVolume(request))
        second = await rejection(plugin.controller.DeleteVolume(request))
        job_id = [*plugin.cistern.jobs][-1]

        assert first == second == ("ABORTED", f"job {job_id} is still at work; call again")
        plugin.cistern.release()
        await plugin.controller.DeleteVolume(request)
        assert len(plugin.cistern.jobs) == 2

    async def test_job_in_the_way_that_is_gone_is_no_obstacle(self, plugin: Plugin) -> None:
        """Jobs that have ended are deleted after some time."""
        volume = await plugin.volume()
        row, path = plugin.cistern.volumes[volume.volume_id], "/jobs/0a0b1c2d"
        row["job_id"] = path.removeprefix("/jobs/")
        plugin.cistern.meanwhile = ("GET", path, lambda: row.update(job_id=None))
        await plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume.volume_id))

        assert plugin.cistern.volumes == {}

    async def test_call_that_waits_ends_as_soon_as_the_job_has(self, plugin: Plugin) -> None:
        request = csi.DeleteVolumeRequest(volume_id=(await plugin.volume()).volume_id)
        plugin.cistern.held = {"volume.delete"}
        call = asyncio.ensure_future(plugin.controller.DeleteVolume(request))
        while len(plugin.cistern.jobs) < 2:
            await asyncio.sleep(0.01)
        plugin.cistern.release()

        await call
        assert plugin.cistern.volumes == {}

    async def test_volume_with_snapshots_or_attachments_is_in_use(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        request = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
        plugin.cistern.attachments["a"] = {"volume_id": volume.volume_id, "node": "node-1", "holder": "shell"}
        assert await status(plugin.controller.DeleteVolume(request)) == "FAILED_PRECONDITION"
        plugin.cistern.attachments.clear()
        await plugin.snapshot(volume)

        assert await status(plugin.controller.DeleteVolume(request)) == "FAILED_PRECONDITION"
        assert len(plugin.cistern.volumes) == 1

    async def test_file_that_somebody_has_open_is_in_use(self, plugin: Plugin) -> None:
        request = csi.DeleteVolumeRequest(volume_id=(await plugin.volume()).volume_id)
        plugin.cistern.failing = {"volume.delete": "volume-in-use"}
        assert await status(plugin.controller.DeleteVolume(request)) == "FAILED_PRECONDITION"
        plugin.cistern.failing = {}

        await plugin.controller.DeleteVolume(request)
        assert plugin.cistern.volumes == {}


class TestExpand:
    def request(self, volume: csi.Volume, *capacity: int) -> csi.ControllerExpandVolumeRequest:
        return csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size(*capacity))

    async def test_volume_is_expanded_once(self, plugin: Plugin) -> None:
        request = self.request(await plugin.volume(), 2 * GIB)
        first = await plugin.controller.ControllerExpandVolume(request)

        assert (first.capacity_bytes, first.node_expansion_required) == (2 * GIB, False)
        assert first == await plugin.controller.ControllerExpandVolume(request)
        assert len(plugin.cistern.jobs) == 2

    async def test_file_system_that_has_not_grown_is_the_task_of_the_node(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        plugin.cistern.volumes[volume.volume_id]["filesystem_grown_to"] = 4096
        expanded = await plugin.controller.ControllerExpandVolume(self.request(volume, GIB))

        assert (expanded.capacity_bytes, expanded.node_expansion_required) == (GIB, True)

    async def test_job_at_work_is_found_by_the_repeated_call(self, plugin: Plugin) -> None:
        request = self.request(await plugin.volume(), 2 * GIB)
        plugin.cistern.held = {"volume.expand"}
        first = await rejection(plugin.controller.ControllerExpandVolume(request))
        second = await rejection(plugin.controller.ControllerExpandVolume(request))
        job_id = [*plugin.cistern.jobs][-1]

        assert first == second == ("ABORTED", f"job {job_id} is still at work; call again")
        plugin.cistern.release()
        assert (await plugin.controller.ControllerExpandVolume(request)).capacity_bytes == 2 * GIB
        assert len(plugin.cistern.jobs) == 2

    async def test_volume_that_another_client_has_expanded_further_is_large_enough(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        path = f"/volumes/{volume.volume_id}/expand"
        plugin.cistern.meanwhile = ("POST", path, lambda: plugin.cistern.request("POST", path, body={"to": 3 * GIB}))
        expanded = await plugin.controller.ControllerExpandVolume(self.request(volume, 2 * GIB))

        assert expanded.capacity_bytes == 3 * GIB

    async def test_limit_below_the_present_size_is_out_of_range(self, plugin: Plugin) -> None:
        volume = await plugin.volume()

        for capacity in ((1, GIB // 2), (2 * GIB, GIB), (GIB + 1, GIB + 2), (MAX_SIZE + 1,)):
            request = self.request(volume, *capacity)
            assert await status(plugin.controller.ControllerExpandVolume(request)) == "OUT_OF_RANGE"

    async def test_expansion_beyond_the_backend_exhausts_the_resources(self, plugin: Plugin) -> None:
        request = self.request(await plugin.volume(), 101 * GIB)

        assert await status(plugin.controller.ControllerExpandVolume(request)) == "RESOURCE_EXHAUSTED"

    async def test_request_must_be_complete(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        expand = plugin.controller.ControllerExpandVolume
        whole = csi.ControllerExpandVolumeRequest(
            volume_id=volume.volume_id, capacity_range=size(2 * GIB), volume_capability=block()
        )

        assert await status(expand(csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id))) == "INVALID_ARGUMENT"
        assert await status(expand(csi.ControllerExpandVolumeRequest(capacity_range=size(1)))) == "INVALID_ARGUMENT"
        assert await status(expand(whole)) == "INVALID_ARGUMENT"
        for missing in (NOBODY, "none"):
            assert await status(expand(self.request(csi.Volume(volume_id=missing), GIB))) == "NOT_FOUND"


class TestLook:
    async def test_capabilities_that_a_volume_has_are_confirmed(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        wanted = [mount("ext4"), mount(mode=Mode.SINGLE_NODE_READER_ONLY)]
        request = csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id, volume_capabilities=wanted, parameters={"backend": "local"}
        )
        answer = await plugin.controller.ValidateVolumeCapabilities(request)

        assert list(answer.confirmed.volume_capabilities) == wanted
        assert answer.confirmed.parameters == {"backend": "local"}

    @pytest.mark.parametrize("other", [mount("xfs"), block(), mount(mode=Mode.MULTI_NODE_READER_ONLY)])
    async def test_capability_that_a_volume_has_not_is_not_confirmed(
        self, plugin: Plugin, other: csi.VolumeCapability
    ) -> None:
        volume = await plugin.volume()
        request = csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id, volume_capabilities=[mount(), other]
        )
        answer = await plugin.controller.ValidateVolumeCapabilities(request)

        assert (answer.HasField("confirmed"), bool(answer.message)) == (False, True)

    async def test_validation_needs_a_volume_and_capabilities(self, plugin: Plugin) -> None:
        validate = plugin.controller.ValidateVolumeCapabilities
        request = csi.ValidateVolumeCapabilitiesRequest

        assert await status(validate(request(volume_capabilities=[mount()]))) == "INVALID_ARGUMENT"
        assert await status(validate(request(volume_id=(await plugin.volume()).volume_id))) == "INVALID_ARGUMENT"
        assert await status(validate(request(volume_id=NOBODY, volume_capabilities=[mount()]))) == "NOT_FOUND"

    async def test_list_has_pages_which_bear_creations_and_deletions(self, plugin: Plugin) -> None:
        volumes = [await plugin.volume(f"pvc-{number}") for number in range(5)]
        first = await plugin.controller.ListVolumes(csi.ListVolumesRequest(max_entries=2))
        await plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=first.entries[-1].volume.volume_id))
        await plugin.volume("late")
        rest = await plugin.controller.ListVolumes(csi.ListVolumesRequest(starting_token=first.next_token))

        found = [entry.volume.volume_id for entry in (*first.entries, *rest.entries)]
        assert found == [one.volume_id for one in reversed(volumes)]
        assert (bool(first.next_token), rest.next_token) == (True, "")

    async def test_list_has_no_volume_that_is_being_created(self, plugin: Plugin) -> None:
        plugin.cistern.held = {"volume.create"}
        assert await status(plugin.volume()) == "ABORTED"

        assert not (await plugin.controller.ListVolumes(csi.ListVolumesRequest())).entries

    async def test_bad_page_is_refused(self, plugin: Plugin) -> None:
        listing = plugin.controller.ListVolumes

        assert await status(listing(csi.ListVolumesRequest(starting_token="other"))) == "ABORTED"
        assert await status(listing(csi.ListVolumesRequest(max_entries=-1))) == "INVALID_ARGUMENT"

    async def test_volume_says_where_it_is_and_what_is_wrong(self, plugin: Plugin) -> None:
        volume = await plugin.volume()
        request = csi.ControllerGetVolumeRequest(volume_id=volume.volume_id)
        found = await plugin.controller.ControllerGetVolume(request)
        assert (found.volume, found.status.volume_condition.abnormal) == (volume, False)
        plugin.cistern.attachments["a"] = {"volume_id": volume.volume_id, "node": "node-2", "holder": "shell"}
        plugin.cistern.volumes[volume.volume_id]["filesystem_error"] = "resize2fs: bad magic"
        found = await plugin.controller.ControllerGetVolume(request)

        assert list(found.status.published_node_ids) == ["node-2"]
        assert "bad magic" in found.status.volume_condition.message
        request = csi.ControllerGetVolumeRequest(volume_id=NOBODY)
        assert await status(plugin.controller.ControllerGetVolume(request)) == "NOT_FOUND"

    async def test_broken_volume_is_abnormal(self, plugin: Plugin) -> None:
        plugin.cistern.failing = {"volume.create": "storage-full"}
        await status(plugin.volume())
        (entry,) = (await plugin.controller.ListVolumes(csi.ListVolumesRequest())).entries

        assert entry.status.volume_condition.abnormal
        assert entry.status.volume_condition.message == "The storage said no. (storage-full)"

    async def test_capacity_is_that_of_the_backend(self, plugin: Plugin) -> None:
        async def capacity(**members: Any) -> int:
            return int((await plugin.controller.GetCapacity(csi.GetCapacityRequest(**members))).available_capacity)

        assert await capacity() == 100 * GIB
        assert await capacity(parameters={"backend": "null"}) == MAX_SIZE
        assert await capacity(volume_capabilities=[block()]) == 0
        request = csi.GetCapacityRequest(parameters={"backend": "tape"})
        assert await status(plugin.controller.GetCapacity(request)) == "INVALID_ARGUMENT"

    async def test_capabilities_are_those_of_the_calls(self, plugin: Plugin) -> None:
        answer = await plugin.controller.ControllerGetCapabilities(csi.ControllerGetCapabilitiesRequest())
        names = {csi.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in answer.capabilities}

        assert {"CREATE_DELETE_VOLUME", "CREATE_DELETE_SNAPSHOT", "CLONE_VOLUME", "EXPAND_VOLUME"} <= names
        assert "PUBLISH_UNPUBLISH_VOLUME" not in names
