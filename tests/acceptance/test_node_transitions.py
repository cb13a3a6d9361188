"""A node's agent killed before and after each step: nothing is left frozen, mounted twice, or attached to nobody."""

import asyncio
import signal
from pathlib import Path

import pytest

from domain.volumes.model import Growth
from tests.acceptance.cluster import Cluster
from tests.acceptance.node_builders import GROWN, one_node
from tests.acceptance.node_builders import place as place  # noqa: PLC0414 (a fixture)
from tests.acceptance.sabotage_node import ATTACH, DETACH, FREEZE, GROW, chosen
from tests.acceptance.waiting import TIMEOUT_SECONDS, ended, exit_code
from tests.integration.host_builders import devices_of
from tests.integration.job_builders import volume_row
from worker.node.host import filesystems


@pytest.mark.parametrize("transition", chosen(ATTACH))
async def test_an_agent_killed_at_any_step_of_attaching_leaves_the_volume_attached_once(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        victim = await node.start(transition)
        job = await node.request_attach()
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        assert (await ended(node.services, job.id)).status == "succeeded"
        await node.assert_attached()


@pytest.mark.parametrize("transition", chosen(DETACH))
async def test_an_agent_killed_at_any_step_of_detaching_leaves_nothing_attached(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        victim = await node.start_with_the_volume(transition)
        job = await node.request_detach()
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        assert (await ended(node.services, job.id)).status == "succeeded"
        await node.assert_detached()


@pytest.mark.parametrize("transition", chosen(GROW))
async def test_an_agent_killed_at_any_step_of_a_growth_leaves_it_to_the_next_one(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        victim = await node.start_with_the_volume(transition)
        await ended(node.services, (await node.services.volumes.request_expand(node.volume_id, Growth(to=GROWN))).id)
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await volume_row(node.services, node.volume_id))["filesystem_grown_to"] != GROWN:
                await asyncio.sleep(0.05)
        [device] = devices_of(node.file)
        assert filesystems.mounted_size(node.mount_path, Path(device), "xfs") == GROWN
        await node.assert_attached()


@pytest.mark.parametrize("transition", chosen(FREEZE))
async def test_an_agent_killed_at_any_step_of_a_freeze_leaves_nothing_frozen(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        victim = await node.start_with_the_volume(transition)
        async with node.services.freezer.frozen(node.volume_id) as freeze:
            pass
        assert await exit_code(victim) == -signal.SIGKILL

        writing = asyncio.to_thread((node.own_path / "thawed").write_text, "data")
        await asyncio.wait_for(writing, TIMEOUT_SECONDS)
        assert not freeze.was_held
        await node.start()
        async with node.services.freezer.frozen(node.volume_id) as again:
            pass
        assert again.was_held
        await node.assert_attached()
