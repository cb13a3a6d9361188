"""What tests of inspections share: services on a disk, and short ways to inspect."""

from pathlib import Path
from uuid import UUID, uuid4

from domain.check.findings import Finding
from domain.services import Services
from domain.settings import Settings
from domain.storage.context import Fence, Grant
from tests.integration.snapshot_builders import path


def on_disk(settings: Settings, folder: Path) -> Settings:
    """Settings with a disk instead of memory."""
    return settings.model_copy(update={"backends": {"disk": f"file:{folder}/disk"}})


def leave(version: int, epoch: int = 0) -> Grant:
    """Leave for an attempt that some other history has seen."""
    return Grant(uuid4(), Fence(version, epoch), float("inf"))


async def inspect(services: Services, *, repair: bool = False) -> list[Finding]:
    return (await services.check().report(repair=repair)).findings


async def told(services: Services) -> list[tuple[str, str, bool]]:
    """What an inspection finds: code, subject, and whether it says that it can mend it."""
    return [(finding.code.value, finding.subject, finding.repairable) for finding in await inspect(services)]


async def as_repaired(services: Services) -> list[str]:
    """Mend everything; returns the codes. Nothing may be left, and a second look finds nothing."""
    found = await inspect(services, repair=True)
    assert [str(finding) for finding in found if not finding.repaired] == []
    assert [str(finding) for finding in await inspect(services)] == []
    return [finding.code.value for finding in found]


def folder(services: Services, volume_id: UUID) -> Path:
    return path(services, volume_id).parent
