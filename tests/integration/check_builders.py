"""Shared by the tests of `domain.check`: services with a file backend, and short calls of the check."""

from collections import Counter
from pathlib import Path
from uuid import UUID, uuid4

from domain.check.findings import Finding
from domain.check.service import Check
from domain.services import Services
from domain.settings import Settings
from domain.storage.context import Fence, Grant
from tests.integration.snapshot_builders import path


def on_disk(settings: Settings, folder: Path) -> Settings:
    """Return settings with a file backend, ``disk``, instead of the memory backend."""
    return settings.model_copy(update={"backends": {"disk": f"file:{folder}/disk"}})


def grant_at(version: int, epoch: int = 0) -> Grant:
    """Return a grant for an attempt that the database does not know."""
    return Grant(uuid4(), Fence(version, epoch), float("inf"))


async def run_check(services: Services, *, repair: bool = False) -> list[Finding]:
    return (await report(services, repair=repair))[0]


async def repair_beside_a_worker(services: Services) -> list[Finding]:
    """Repair while a worker keeps its lease for longer than the repair waits."""
    check = Check(services.database, services.backends, services.handlers, lease=0.1)
    return [finding async for finding in check.findings(Counter(), repair=True)]


async def report(services: Services, *, repair: bool = False) -> tuple[list[Finding], Counter[str]]:
    """Run a check; return the findings and the number of things checked, by name."""
    checked = Counter[str]()
    return [finding async for finding in services.check().findings(checked, repair=repair)], checked


async def findings(services: Services) -> list[tuple[str, str, bool]]:
    """Run a check; return code, subject and repairability of each finding."""
    return [(finding.code.value, finding.subject, finding.repairable) for finding in await run_check(services)]


async def repair_all(services: Services) -> list[str]:
    """Repair everything and return the codes. All findings must be repaired, and a second check must find nothing."""
    found = await run_check(services, repair=True)
    assert [str(finding) for finding in found if not finding.repaired] == []
    assert [str(finding) for finding in await run_check(services)] == []
    return [finding.code.value for finding in found]


def folder(services: Services, volume_id: UUID) -> Path:
    return path(services, volume_id).parent
