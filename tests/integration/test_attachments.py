"""Volumes attached to a node by jobs: real loop devices, mounts and file systems."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from api.cli.check_command import this_host
from domain.check import attachments as check_attachments
from domain.db.base import DEFAULT_PROJECT
from domain.errors import UnknownNode, VolumeAttached
from domain.jobs.model import Job
from domain.services import Services
from domain.settings import Settings
from domain.volumes.attachments.model import Attachment, Mode
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.model import Growth, Volume
from tests.integration.conftest import RunningWorker
from tests.integration.host_builders import MIB, require_tools
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from tests.integration.job_builders import an_engine, row, sql, volume_row
from tests.integration.node_fixtures import NODE
from tests.integration.node_fixtures import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import node_settings as node_settings  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import services as services  # noqa: PLC0414 (a fixture)
from tests.integration.snapshot_builders import a_stored_volume, done
from tests.support.node import attachments_of, running_node
from worker.node.host.errors import HostFailed
from worker.node.host.filesystems import FilesystemUsage
from worker.node.host.host import Host
from worker.node.host.operations import HostOperations


async def a_formatted_volume(services: Services, filesystem: str = "xfs", size: int = 320 * MIB) -> Volume:
    """Create a volume with a file system, without any job."""
    require_tools(f"mkfs.{filesystem}")
    volume = await a_stored_volume(services, size=size, backend="disk")
    make = await asyncio.create_subprocess_exec(f"mkfs.{filesystem}", "-q", str(services.volumes.path(volume)))
    assert await make.wait() == 0
    await sql(services, f"UPDATE volumes SET filesystem = '{filesystem}' WHERE id = '{volume.id}'")
    return volume


async def attach(services: Services, volume: Volume, holder: str = "one", **members: object) -> Job:
    new = NewAttachment(NODE, holder, **members)  # type: ignore[arg-type]
    return await done(services, await services.attachments.request_attach(volume.id, new))


async def detach(services: Services, volume: Volume, holder: str = "one", *, force: bool = False) -> Job:
    [found] = [one for one in await attachments(services, volume) if one.holder == holder]
    return await done(services, await services.attachments.request_detach(volume.id, found.id, force=force))


async def attachments(services: Services, volume: Volume) -> list[Attachment]:
    return await attachments_of(services, volume.id)


async def a_silent_node(services: Services, node: str = NODE) -> None:
    """A node whose agent has been away for half an hour."""
    values = f"gen_random_uuid(), 'host', 1, '{node}', now() - interval '30 minutes'"
    await sql(services, f"INSERT INTO workers (id, host, pid, node, heartbeat_at) VALUES ({values})")


def result_of(job: Job, name: str) -> str:
    assert job.result is not None
    return str(job.result[name])


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def size_of(path: str) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


async def test_a_volume_is_mounted_for_its_first_holder_and_unmounted_after_its_last(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services)
    async with running_node(node_settings, host):
        first = await attach(services, volume)
        own = node_settings.node_dir.parent / "own"
        second = await attach(services, volume, "two", mode=Mode.READ_ONLY, path=str(own))
        mounted = Path(result_of(first, "path"))
        (mounted / "file").write_text("data")

        assert (own / "file").read_text() == "data"
        assert result_of(second, "path") == str(own)
        with pytest.raises(OSError, match="Read-only"):
            (own / "other").write_text("")
        await detach(services, volume)
        assert (own / "file").read_text() == "data"
        await detach(services, volume, "two")

    assert (await host.found(), await attachments(services, volume)) == ([], [])
    assert not own.exists() or not list(own.iterdir())
    row = await volume_row(services, volume.id)
    assert (row["state"], row["filesystem_grown_to"]) == ("available", 320 * MIB)
    assert 0 < row["filesystem_used"] < row["filesystem_size"] < 320 * MIB


async def test_a_volume_in_use_is_neither_restored_nor_deleted_nor_attached_elsewhere(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_node(node_settings, host):
        await attach(services, volume)
        with pytest.raises(VolumeAttached) as refused:
            await services.volumes.request_delete(volume.id)
        await sql(services, "INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, 'web-2')")
        with pytest.raises(VolumeAttached):
            await services.attachments.request_attach(volume.id, NewAttachment("web-2", "one"))
        with pytest.raises(UnknownNode):
            await services.attachments.request_attach(volume.id, NewAttachment("web-3", "one"))
        await detach(services, volume)
        deleted = await services.volumes.request_delete(volume.id)

    assert (refused.value.details["node"], refused.value.details["holder"]) == (NODE, "one")
    assert deleted.kind == "volume.delete"


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
async def test_a_mounted_file_system_grows_with_its_volume(
    services: Services, node_settings: Settings, host: Host, running_worker: RunningWorker, filesystem: str
) -> None:
    volume = await a_formatted_volume(services, filesystem)
    async with running_worker(node_settings), running_node(node_settings, host):
        mounted = result_of(await attach(services, volume), "path")
        before = size_of(mounted)
        await done(services, await services.volumes.request_expand(volume.id, Growth(to=512 * MIB)))

        await until(lambda: size_of(mounted) > before + 150 * MIB)
        await detach(services, volume)
    assert (await volume_row(services, volume.id))["filesystem_grown_to"] == 512 * MIB


async def test_a_freeze_holds_writes_back_until_the_worker_is_done(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_node(node_settings, host):
        mounted = Path(result_of(await attach(services, volume), "path"))
        async with services.freezer.frozen(volume.id) as freeze:
            writing = asyncio.create_task(asyncio.to_thread((mounted / "file").write_text, "data"))
            done_while_frozen, _ = await asyncio.wait({writing}, timeout=0.5)
        await writing

        assert (freeze.is_frozen, freeze.was_held, done_while_frozen) == (True, True, set())
        assert (mounted / "file").read_text() == "data"
        await detach(services, volume)


async def test_a_volume_that_is_not_mounted_need_not_be_frozen(services: Services) -> None:
    volume = await a_stored_volume(services, size=MIB, backend="disk")
    async with services.freezer.frozen(volume.id) as freeze:
        pass
    assert (freeze.is_frozen, freeze.was_held) == (False, False)


async def test_a_node_that_comes_back_has_its_volumes_again(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    own = node_settings.node_dir.parent / "own"
    async with running_node(node_settings, host):
        await attach(services, volume, path=str(own))
        (own / "file").write_text("data")
    operations = HostOperations(node_settings.node_dir)  # a reboot takes all mounts away
    operations.unbind(volume.id, own)
    operations.detach(volume.id)
    await sql(services, "UPDATE mounts SET device = '/dev/loop999'")

    async with running_node(node_settings, host):
        await until((own / "file").exists)
        [found] = await host.found()
        async with asyncio.timeout(20):
            while (await sql(services, "SELECT device FROM mounts"))[0][0] != found.device:
                await asyncio.sleep(0.02)
        await detach(services, volume)


async def test_a_lost_nodes_writes_never_reach_a_volume_that_was_taken_from_it(
    services: Services, node_settings: Settings, host: Host, running_worker: RunningWorker
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_node(node_settings, host):
        mounted = Path(result_of(await attach(services, volume), "path"))
        (mounted / "kept").write_text("data")
        os.sync()
    async with running_worker(node_settings):
        taken = await detach(services, volume, force=True)
        (mounted / "lost").write_text("written by a node that has lost the volume")
        os.sync()
    assert taken.kind == "volume.isolate"
    assert await attachments(services, volume) == []

    async with running_node(node_settings, host):
        again = Path(result_of(await attach(services, volume, "two"), "path"))
        assert sorted(path.name for path in again.iterdir()) == ["kept", "lost+found"]
        await detach(services, volume, "two")


async def test_an_attached_volume_without_a_file_system_is_a_device(
    services: Services, node_settings: Settings, host: Host, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, size=MIB, content=b"data", backend="disk")
    async with running_worker(node_settings), running_node(node_settings, host):
        device = Path(result_of(await attach(services, volume), "path"))
        assert device.read_bytes()[:4] == b"data"
        await done(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
        await until(lambda: len(device.read_bytes()) == 2 * MIB)
        await detach(services, volume)
    assert await host.found() == []


@pytest.mark.parametrize("agent", ["silent", "forgotten"])
async def test_a_job_of_a_node_whose_agent_is_not_alive_waits_and_says_so(services: Services, agent: str) -> None:
    volume = await a_stored_volume(services, size=MIB, backend="disk")
    await a_silent_node(services)
    job = await services.attachments.request_attach(volume.id, NewAttachment(NODE, "one"))
    await sql(services, "UPDATE jobs SET run_at = now() - interval '6 seconds'")
    tasks = services.maintenance_tasks(an_engine(services))
    if agent == "forgotten":
        await sql(services, "DELETE FROM workers")
    [waiting] = [task for task, is_due in await tasks.due() if is_due and task.event == "jobs.waiting"]

    assert (await waiting.run(), await waiting.run()) == (1, 0)
    told = await row(services, job.id)
    assert (told.status, told.attempt) == ("queued", 0)
    assert told.error == {
        "code": "node-not-alive",
        "detail": "The agent of the node 'web-1' is not alive; the job waits until it is.",
    }
    assert "jobs.waiting" not in {task.event for task, is_due in await tasks.due() if is_due}


async def test_a_job_of_a_node_whose_agent_is_alive_waits_without_an_error(services: Services) -> None:
    volume = await a_stored_volume(services, size=MIB, backend="disk")
    await a_silent_node(services)
    await sql(services, "UPDATE workers SET heartbeat_at = now()")
    job = await services.attachments.request_attach(volume.id, NewAttachment(NODE, "one"))
    await sql(services, "UPDATE jobs SET run_at = now() - interval '6 seconds'")
    engine = an_engine(services)

    assert await engine.maintenance.explain_waiting() == 0
    assert (await row(services, job.id)).error is None


async def test_nodes_are_listed_with_their_attachments_and_are_no_workers(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_node(node_settings, host):
        await attach(services, volume)
        [node] = await services.attachments.nodes(project_id=DEFAULT_PROJECT)
        other = await services.attachments.nodes(project_id=UUID(int=1))
        assert (node.name, node.is_alive, node.attachments) == (NODE, True, 1)
        assert [one.attachments for one in other] == [0]
        assert await services.workers.count_alive() == 0
        await detach(services, volume)


class Unmeasurable(Host):
    """A host whose file systems do not say how full they are."""

    async def usage(self, volume_id: UUID) -> FilesystemUsage:
        raise HostFailed(f"Nothing is known of {volume_id}.")


async def test_the_use_of_a_volume_is_unknown_if_it_could_not_be_measured_at_its_end(
    services: Services, node_settings: Settings, host: Host
) -> None:
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_node(node_settings, Unmeasurable(node_settings.node_dir)):
        await attach(services, volume)
        await sql(services, "UPDATE volumes SET used = 1, used_at = now()")
        await detach(services, volume)

    row = await volume_row(services, volume.id)
    assert (row["used"], row["used_at"]) == (None, None)


async def test_check_as_root_on_a_node_compares_with_what_the_kernel_has(
    services: Services, node_settings: Settings, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_attachments, "_SECOND_LOOK_SECONDS", 0)
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    assert this_host(node_settings) is None, "the directory of a node is not there yet"
    async with running_node(node_settings, host):
        await attach(services, volume)
    check = services.check(this_host(node_settings))
    mounted = [finding async for finding in check.findings(Counter())]
    HostOperations(node_settings.node_dir).detach(volume.id)
    unmounted = [finding async for finding in check.findings(Counter())]

    codes = [[(one.code, one.subject) for one in found if one.code != "no-node"] for found in (mounted, unmounted)]
    assert codes == [[], [("not-mounted", f"volume {volume.id}")]]


async def test_a_volume_is_frozen_while_it_is_taken_by_force_from_a_node_that_answers(
    services: Services,
    node_settings: Settings,
    host: Host,
    running_worker: RunningWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its bytes are copied one after the other, while the holder goes on writing."""
    volume = await a_formatted_volume(services, "ext4", 64 * MIB)
    async with running_worker(node_settings), running_node(node_settings, host):
        await attach(services, volume)
        await detach(services, volume, force=True)
        await until(lambda: "node.released" in caplog.text)
    assert "'was_held': True" in caplog.text
