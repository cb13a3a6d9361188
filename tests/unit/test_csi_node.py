"""The node service of the CSI plugin: each call twice, beside jobs at work, and each error for its case."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.csi import csi_pb2 as csi
from tests.unit.csi_client import GIB, NOBODY, Mode, Plugin, block, mount, open_plugin, rejection, size, status


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    async with open_plugin(tmp_path) as plugin:
        yield plugin


@pytest.fixture
async def volume(plugin: Plugin) -> csi.Volume:
    return await plugin.volume()


def staging(plugin: Plugin) -> str:
    return str(plugin.folder / "staging")


def target(plugin: Plugin, pod: str = "pod-1") -> str:
    return str(plugin.folder / pod)


def stage(plugin: Plugin, volume: csi.Volume, **members: Any) -> Any:
    defaults = {"staging_target_path": staging(plugin), "volume_capability": mount()}
    return plugin.node.NodeStageVolume(csi.NodeStageVolumeRequest(volume_id=volume.volume_id, **(defaults | members)))


def publish(plugin: Plugin, volume: csi.Volume, pod: str = "pod-1", **members: Any) -> Any:
    defaults = {
        "staging_target_path": staging(plugin),
        "target_path": target(plugin, pod),
        "volume_capability": mount(),
    }
    return plugin.node.NodePublishVolume(
        csi.NodePublishVolumeRequest(volume_id=volume.volume_id, **(defaults | members))
    )


def unstage(plugin: Plugin, volume_id: str, path: str) -> Any:
    return plugin.node.NodeUnstageVolume(csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=path))


def unpublish(plugin: Plugin, volume_id: str, path: str) -> Any:
    return plugin.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=path))


def attached(plugin: Plugin) -> list[tuple[str, str, str, str, str]]:
    members = ("node", "holder", "mode", "path", "state")
    rows = plugin.cistern.attachments.values()
    return [tuple(row[name] for name in members) for row in rows]


async def test_node_says_its_name_and_what_it_can_do(plugin: Plugin) -> None:
    assert (await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest())).node_id == "node-1"
    answer = await plugin.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
    names = {csi.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in answer.capabilities}

    assert {"STAGE_UNSTAGE_VOLUME", "EXPAND_VOLUME", "GET_VOLUME_STATS"} <= names


async def test_life_of_a_volume_on_a_node_twice_each_call(plugin: Plugin, volume: csi.Volume) -> None:
    for _ in range(2):
        await stage(plugin, volume)
    assert attached(plugin) == [("node-1", "csi:stage", "rw", staging(plugin), "attached")]
    for _ in range(2):
        await publish(plugin, volume)
    pod = target(plugin)
    assert attached(plugin)[1:] == [("node-1", f"csi:{pod}", "rw", pod, "attached")]
    Path(pod).mkdir()  # by the agent
    for _ in range(2):
        await unpublish(plugin, volume.volume_id, pod)
    assert len(attached(plugin)) == 1
    assert not Path(pod).exists()
    for _ in range(2):
        await unstage(plugin, volume.volume_id, staging(plugin))
    assert attached(plugin) == []


class TestStage:
    async def test_repeated_call_lets_the_node_look_again(self, plugin: Plugin, volume: csi.Volume) -> None:
        """After a restart of the host the attachment is there, and the mount may be not."""
        await stage(plugin, volume)
        await stage(plugin, volume)

        assert [job["kind"] for job in plugin.cistern.jobs.values()].count("volume.attach") == 2

    async def test_reader_is_staged_read_only(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume, volume_capability=mount(mode=Mode.SINGLE_NODE_READER_ONLY))

        assert attached(plugin)[0][2] == "ro"

    async def test_job_at_work_is_found_by_the_repeated_call(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.held = {"volume.attach"}
        first, second = await rejection(stage(plugin, volume)), await rejection(stage(plugin, volume))
        job_id = [*plugin.cistern.jobs][-1]

        assert first == second == ("ABORTED", f"job {job_id} is still at work; call again")
        plugin.cistern.release()
        await stage(plugin, volume)

    async def test_call_that_finds_a_job_at_work_waits_for_it(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.held = {"volume.attach"}
        assert await status(stage(plugin, volume)) == "ABORTED"
        call = asyncio.ensure_future(stage(plugin, volume))
        while plugin.cistern.requests[-1][:2] != ("GET", f"/api/v1/jobs/{[*plugin.cistern.jobs][-1]}"):
            await asyncio.sleep(0.01)
        plugin.cistern.release()

        await call
        assert len(attached(plugin)) == 1

    async def test_volume_of_another_node_is_not_staged(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.attachments["a"] = {"volume_id": volume.volume_id, "node": "node-2", "holder": "csi:stage"}
        code, message = await rejection(stage(plugin, volume))

        assert (code, "volume-attached" in message) == ("FAILED_PRECONDITION", True)

    async def test_other_mode_or_path_of_the_same_holder_is_taken(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        reader = mount(mode=Mode.SINGLE_NODE_READER_ONLY)

        assert await status(stage(plugin, volume, volume_capability=reader)) == "ALREADY_EXISTS"
        assert await status(stage(plugin, volume, staging_target_path="/elsewhere")) == "ALREADY_EXISTS"

    async def test_incomplete_request_is_invalid(self, plugin: Plugin, volume: csi.Volume) -> None:
        node, request = plugin.node, csi.NodeStageVolumeRequest
        missing = request(volume_id=volume.volume_id, staging_target_path=staging(plugin))

        assert await status(stage(plugin, csi.Volume())) == "INVALID_ARGUMENT"
        assert await status(stage(plugin, volume, staging_target_path="")) == "INVALID_ARGUMENT"
        assert await status(stage(plugin, volume, staging_target_path="relative")) == "INVALID_ARGUMENT"
        assert await status(stage(plugin, volume, volume_capability=csi.VolumeCapability())) == "INVALID_ARGUMENT"
        assert await status(stage(plugin, volume, volume_capability=mount(mode=Mode.UNKNOWN))) == "INVALID_ARGUMENT"
        assert await status(node.NodeStageVolume(missing)) == "INVALID_ARGUMENT"

    async def test_capability_that_the_volume_has_not_is_refused(self, plugin: Plugin, volume: csi.Volume) -> None:
        for capability in (block(), mount("xfs"), mount(mode=Mode.MULTI_NODE_MULTI_WRITER)):
            assert await status(stage(plugin, volume, volume_capability=capability)) == "FAILED_PRECONDITION"
        plugin.cistern.volumes[volume.volume_id]["filesystem"] = None

        assert await status(stage(plugin, volume)) == "FAILED_PRECONDITION"

    @pytest.mark.parametrize("missing", [NOBODY, "none"])
    async def test_missing_volume_is_not_found(self, plugin: Plugin, missing: str) -> None:
        volume = csi.Volume(volume_id=missing)

        assert await status(stage(plugin, volume)) == "NOT_FOUND"
        assert await status(publish(plugin, volume)) == "NOT_FOUND"
        assert await status(unstage(plugin, missing, staging(plugin))) == "NOT_FOUND"
        assert await status(unpublish(plugin, missing, target(plugin))) == "NOT_FOUND"

    async def test_node_without_its_agent_is_unavailable(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.nodes = {"node-2"}

        assert await status(stage(plugin, volume)) == "UNAVAILABLE"

    async def test_failed_job_says_why(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.failing = {"volume.attach": "mount-failed"}
        code, message = await rejection(stage(plugin, volume))

        assert (code, "The storage said no. (mount-failed)" in message) == ("INTERNAL", True)


class TestPublish:
    async def test_volume_must_be_staged_first(self, plugin: Plugin, volume: csi.Volume) -> None:
        assert await status(publish(plugin, volume)) == "FAILED_PRECONDITION"
        await stage(plugin, volume)

        assert await status(publish(plugin, volume, staging_target_path="")) == "FAILED_PRECONDITION"
        await publish(plugin, volume)

    @pytest.mark.parametrize(
        "how", [{"readonly": True}, {"volume_capability": mount(mode=Mode.SINGLE_NODE_READER_ONLY)}]
    )
    async def test_reader_is_published_read_only(self, plugin: Plugin, volume: csi.Volume, how: dict[str, Any]) -> None:
        await stage(plugin, volume)
        await publish(plugin, volume, **how)

        assert [row[2] for row in attached(plugin)] == ["rw", "ro"]

    async def test_several_pods_of_a_node_share_a_volume(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        for mode in (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER):
            await publish(plugin, volume, f"pod-{mode}", volume_capability=mount(mode=mode))

        assert len(attached(plugin)) == 3

    async def test_single_writer_is_at_one_path_only(self, plugin: Plugin, volume: csi.Volume) -> None:
        single = mount(mode=Mode.SINGLE_NODE_SINGLE_WRITER)
        await stage(plugin, volume, volume_capability=single)
        for _ in range(2):
            await publish(plugin, volume, volume_capability=single)

        assert await status(publish(plugin, volume, "pod-2", volume_capability=single)) == "FAILED_PRECONDITION"

    async def test_other_mode_at_the_same_path_is_taken(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        await publish(plugin, volume)

        assert await status(publish(plugin, volume, readonly=True)) == "ALREADY_EXISTS"

    async def test_incomplete_request_is_invalid(self, plugin: Plugin, volume: csi.Volume) -> None:
        missing = csi.NodePublishVolumeRequest(volume_id=volume.volume_id, target_path=target(plugin))

        assert await status(publish(plugin, csi.Volume())) == "INVALID_ARGUMENT"
        assert await status(publish(plugin, volume, target_path="")) == "INVALID_ARGUMENT"
        assert await status(plugin.node.NodePublishVolume(missing)) == "INVALID_ARGUMENT"
        assert await status(publish(plugin, volume, volume_capability=block())) == "FAILED_PRECONDITION"


class TestUnpublish:
    async def test_job_at_work_is_found_by_the_repeated_call(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        await publish(plugin, volume)
        plugin.cistern.held = {"volume.detach"}
        first = await rejection(unpublish(plugin, volume.volume_id, target(plugin)))
        second = await rejection(unpublish(plugin, volume.volume_id, target(plugin)))

        assert (first, first[0]) == (second, "ABORTED")
        plugin.cistern.release()
        await unpublish(plugin, volume.volume_id, target(plugin))
        assert len(attached(plugin)) == 1

    async def test_attachments_of_others_stay(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        row = {"volume_id": volume.volume_id, "node": "node-1", "holder": "shell", "mode": "rw", "state": "attached"}
        plugin.cistern.attachments["a"] = {**row, "path": staging(plugin)}
        await unstage(plugin, volume.volume_id, staging(plugin))

        assert [*plugin.cistern.attachments] == ["a"]

    async def test_attachments_of_another_node_stay(self, plugin: Plugin, volume: csi.Volume) -> None:
        row = {"node": "node-2", "holder": "csi:stage", "mode": "rw", "state": "attached", "path": staging(plugin)}
        plugin.cistern.attachments["a"] = {**row, "volume_id": volume.volume_id}
        await unstage(plugin, volume.volume_id, staging(plugin))

        assert [*plugin.cistern.attachments] == ["a"]

    async def test_attachment_that_goes_in_between_is_gone(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        path = f"/volumes/{volume.volume_id}/attachments/{next(iter(plugin.cistern.attachments))}"
        plugin.cistern.meanwhile = ("DELETE", path, plugin.cistern.attachments.clear)
        await unstage(plugin, volume.volume_id, staging(plugin))

        assert plugin.cistern.meanwhile is None

    async def test_directory_with_files_is_not_removed(self, plugin: Plugin, volume: csi.Volume) -> None:
        """Then the mount is gone, and somebody has written below it."""
        await stage(plugin, volume)
        await publish(plugin, volume)
        Path(target(plugin)).mkdir()
        Path(target(plugin), "file").touch()

        assert await status(unpublish(plugin, volume.volume_id, target(plugin))) == "INTERNAL"
        assert Path(target(plugin), "file").exists()

    async def test_incomplete_request_is_invalid(self, plugin: Plugin, volume: csi.Volume) -> None:
        for call in (unstage, unpublish):
            assert await status(call(plugin, "", target(plugin))) == "INVALID_ARGUMENT"
            assert await status(call(plugin, volume.volume_id, "")) == "INVALID_ARGUMENT"


class TestExpand:
    def expand(self, plugin: Plugin, volume_id: str, path: str, *capacity: int) -> Any:
        request = csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=path, capacity_range=size(*capacity))
        return plugin.node.NodeExpandVolume(request)

    async def test_expansion_ends_when_the_file_system_has_grown(self, plugin: Plugin, volume: csi.Volume) -> None:
        plugin.cistern.grows = False
        await stage(plugin, volume)
        request = csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=size(2 * GIB))
        expanded = await plugin.controller.ControllerExpandVolume(request)
        assert expanded.node_expansion_required

        assert await status(self.expand(plugin, volume.volume_id, staging(plugin), 2 * GIB)) == "ABORTED"
        call = asyncio.ensure_future(self.expand(plugin, volume.volume_id, staging(plugin), 2 * GIB))
        plugin.cistern.volumes[volume.volume_id]["filesystem_grown_to"] = 2 * GIB
        assert (await call).capacity_bytes == 2 * GIB
        assert (await self.expand(plugin, volume.volume_id, staging(plugin))).capacity_bytes == 2 * GIB

    async def test_file_system_that_cannot_grow_says_why(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        plugin.cistern.volumes[volume.volume_id] |= {"filesystem_grown_to": 4096, "filesystem_error": "no magic"}
        code, message = await rejection(self.expand(plugin, volume.volume_id, staging(plugin)))

        assert (code, "no magic" in message) == ("INTERNAL", True)

    async def test_range_that_the_volume_is_not_in_is_refused(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)

        for capacity in ((2 * GIB,), (1, GIB - 1)):
            call = self.expand(plugin, volume.volume_id, staging(plugin), *capacity)
            assert await status(call) == "OUT_OF_RANGE"

    async def test_volume_must_be_mounted_at_the_path(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)

        assert await status(self.expand(plugin, "", staging(plugin))) == "INVALID_ARGUMENT"
        assert await status(self.expand(plugin, volume.volume_id, "")) == "INVALID_ARGUMENT"
        assert await status(self.expand(plugin, NOBODY, staging(plugin))) == "NOT_FOUND"
        assert await status(self.expand(plugin, volume.volume_id, "/elsewhere")) == "NOT_FOUND"


class TestStats:
    def stats(self, plugin: Plugin, volume_id: str, path: str) -> Any:
        return plugin.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=path))

    async def test_stats_have_bytes_and_inodes(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)
        await publish(plugin, volume)
        found = await self.stats(plugin, volume.volume_id, target(plugin))

        assert [(one.unit, one.total, one.used, one.available) for one in found.usage] == [
            (csi.VolumeUsage.BYTES, GIB, 4096, GIB - 4096),
            (csi.VolumeUsage.INODES, 65_536, 11, 65_525),
        ]
        assert not found.volume_condition.abnormal

    async def test_stats_of_a_file_system_without_an_inode_table_have_bytes(
        self, plugin: Plugin, volume: csi.Volume
    ) -> None:
        await stage(plugin, volume)
        plugin.cistern.volumes[volume.volume_id]["inodes"] = 0

        assert len((await self.stats(plugin, volume.volume_id, staging(plugin))).usage) == 1

    async def test_stats_that_the_node_has_not_reported_are_unavailable(
        self, plugin: Plugin, volume: csi.Volume
    ) -> None:
        await stage(plugin, volume)
        plugin.cistern.volumes[volume.volume_id]["filesystem_size"] = None

        assert await status(self.stats(plugin, volume.volume_id, staging(plugin))) == "UNAVAILABLE"

    async def test_volume_must_be_mounted_at_the_path(self, plugin: Plugin, volume: csi.Volume) -> None:
        await stage(plugin, volume)

        assert await status(self.stats(plugin, "", staging(plugin))) == "INVALID_ARGUMENT"
        assert await status(self.stats(plugin, volume.volume_id, "")) == "INVALID_ARGUMENT"
        assert await status(self.stats(plugin, NOBODY, staging(plugin))) == "NOT_FOUND"
        assert await status(self.stats(plugin, volume.volume_id, "/elsewhere")) == "NOT_FOUND"
