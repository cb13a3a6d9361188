"""Fixtures of tests with a node and a worker on this host, which share volumes in files."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from worker.node.host.host import Host
from worker.node.host.operations import HostOperations

NODE = "web-1"


@pytest.fixture
def node_settings(settings: Settings, place: Path) -> Settings:
    """Settings of both."""
    backends = {"disk": f"file:{place}/volumes"}
    return settings.model_copy(update={"backends": backends, "node": NODE, "node_dir": place / "mounts"})


@pytest.fixture
async def services(node_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(node_settings, adopt=True) as services:
        yield services


@pytest.fixture
def host(node_settings: Settings) -> Iterator[Host]:
    """This host; what is still attached at the end is let go of."""
    yield Host(node_settings.node_dir)
    operations = HostOperations(node_settings.node_dir)
    for volume in operations.found():
        operations.release_lost(volume.volume_id)
