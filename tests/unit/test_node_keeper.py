"""The agent of a node keeps its volumes: what it mounts, leaves alone, reports and freezes, on a host in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from domain.storage.backends import Backends
from domain.volumes.attachments.freezing import FreezeAnswers
from domain.volumes.attachments.model import FilesystemReport, FreezeState, Mode, Mount
from domain.volumes.attachments.node_volumes import Holding, NodeVolume, NodeVolumes
from tests.unit.fake_host import MIB, FakeHost
from worker.node.agent import NodeAgent
from worker.node.freezing import NodeFreezes
from worker.node.keeper import VolumeKeeper

FILE = Path("/volumes/data")


@dataclass
class FakeVolumes:
    """The volumes that a node should have."""

    volumes: dict[UUID, NodeVolume] = field(default_factory=dict)
    reports: list[tuple[UUID, FilesystemReport]] = field(default_factory=list)
    mounts: dict[UUID, tuple[str, str | None]] = field(default_factory=dict)

    async def all(self) -> Mapping[UUID, NodeVolume]:
        return dict(self.volumes)

    async def get(self, volume_id: UUID) -> NodeVolume | None:
        return self.volumes.get(volume_id)

    async def mounted(self, volume_id: UUID, device: str, path: str | None) -> None:
        self.mounts[volume_id] = (device, path)

    async def report(self, volume_id: UUID, report: FilesystemReport) -> None:
        self.reports.append((volume_id, report))


class AgentOfOneFile(NodeAgent):
    """An agent for which all volumes have the same file."""

    def file_of(self, volume_id: UUID, backend: str) -> Path:
        return FILE


@dataclass
class FakeAnswers:
    """One freeze that a worker has asked for; its answers are recorded."""

    freeze_id: UUID = field(default_factory=uuid4)
    volume_id: UUID = field(default_factory=uuid4)
    state: FreezeState | None = None
    answered: list[FreezeState] = field(default_factory=list)

    async def requested(self, node: str) -> Sequence[Mount]:
        return [] if self.state else [Mount(volume_id=self.volume_id, node=node, freeze_id=self.freeze_id)]

    async def answer(self, freeze_id: UUID, state: FreezeState, *, after: Sequence[FreezeState | None]) -> bool:
        if freeze_id != self.freeze_id or self.state not in after:
            return False
        self.state = state
        self.answered.append(state)
        return True

    async def is_released(self, freeze_id: UUID) -> bool:
        return freeze_id != self.freeze_id or self.state is not FreezeState.FROZEN


def a_volume(**changes: Any) -> NodeVolume:
    own = Holding(None, Mode.READ_WRITE)
    return replace(NodeVolume(uuid4(), MIB, "xfs", MIB, "disk", [own], is_changing=False), **changes)


def a_keeper(host: FakeHost, *volumes: NodeVolume) -> tuple[VolumeKeeper, FakeVolumes]:
    known = FakeVolumes({one.id: one for one in volumes})
    keeper = VolumeKeeper(
        host,
        AgentOfOneFile(host, cast("Backends", None)),
        cast("NodeVolumes", known),
        asyncio.sleep,
        freezes=NodeFreezes(host, cast("FreezeAnswers", FakeAnswers(state=FreezeState.HELD)), "web-1"),
        trim_seconds=1000,
        clock=lambda: 0.0,
    )
    return keeper, known


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(sizes={FILE: MIB})


async def test_volume_that_the_host_has_lost_is_mounted_again_and_reported(host: FakeHost) -> None:
    volume = a_volume()
    keeper, known = a_keeper(host, volume)
    await keeper.look()
    await keeper.idle()

    assert known.mounts == {volume.id: ("/dev/loop0", f"/mounts/{volume.id}")}
    assert list(host.volumes) == [volume.id]
    assert {one for one, _ in known.reports} == {volume.id}


@pytest.mark.parametrize("is_mounted", [True, False], ids=["mounted", "not mounted"])
async def test_volume_that_a_job_attaches_or_detaches_is_left_alone(host: FakeHost, *, is_mounted: bool) -> None:
    volume = a_volume(is_changing=True, grown_to=None)
    keeper, known = a_keeper(host, volume)
    if is_mounted:
        await host.attach(FILE, volume.id, "xfs")
    host.calls.clear()
    await keeper.look()
    await keeper.idle()

    assert host.calls == [("found", None)]
    assert known.reports == []


async def test_volume_that_was_taken_from_the_node_is_let_go_of(host: FakeHost) -> None:
    keeper, _ = a_keeper(host)
    await host.attach(FILE, lost := uuid4(), "xfs")
    await keeper.look()
    await keeper.idle()

    assert host.calls[-1] == ("release_lost", lost)


async def a_frozen_volume(host: FakeHost, answers: FakeAnswers) -> NodeFreezes:
    await host.attach(FILE, answers.volume_id, "xfs")
    freezes = NodeFreezes(host, cast("FreezeAnswers", answers), "web-1")
    await freezes.look()
    async with asyncio.timeout(5):
        while answers.state is not FreezeState.FROZEN:
            await asyncio.sleep(0)
    return freezes


async def test_freeze_that_lasted_until_the_worker_was_done_was_held(host: FakeHost) -> None:
    answers = FakeAnswers()
    freezes = await a_frozen_volume(host, answers)
    answers.state = FreezeState.RELEASED
    await freezes.close()

    assert answers.answered == [FreezeState.FROZEN, FreezeState.HELD]
    assert host.frozen == {}


async def test_freeze_that_ended_before_the_worker_was_done_is_lost(host: FakeHost) -> None:
    answers = FakeAnswers()
    freezes = await a_frozen_volume(host, answers)
    host.frozen[answers.volume_id].expired = True
    await freezes.close()

    assert answers.answered == [FreezeState.FROZEN, FreezeState.LOST]


async def test_freeze_whose_time_was_over_while_the_worker_released_it_is_lost(host: FakeHost) -> None:
    answers = FakeAnswers()
    freezes = await a_frozen_volume(host, answers)
    host.frozen[answers.volume_id].expired = True
    answers.state = FreezeState.RELEASED
    await freezes.close()

    assert answers.answered == [FreezeState.FROZEN, FreezeState.LOST]


async def test_freeze_that_the_host_refuses_is_lost(host: FakeHost) -> None:
    answers = FakeAnswers()
    freezes = NodeFreezes(host, cast("FreezeAnswers", answers), "web-1")
    await freezes.look()
    await freezes.close()

    assert answers.answered == [FreezeState.LOST]


async def test_freeze_for_the_worker_that_takes_over_follows_that_for_the_lost_one(host: FakeHost) -> None:
    answers = FakeAnswers()
    freezes = await a_frozen_volume(host, answers)
    answers.freeze_id, answers.state = uuid4(), None
    answers.answered.clear()
    await freezes.look()
    async with asyncio.timeout(5):
        while not answers.answered:
            await asyncio.sleep(0)
    answers.state = FreezeState.RELEASED
    await freezes.close()

    assert answers.answered == [FreezeState.FROZEN, FreezeState.HELD]
    assert host.frozen == {}
