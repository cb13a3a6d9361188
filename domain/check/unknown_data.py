"""Compares backends with rows: finds data of volumes that have no row. It is never deleted, only given a new row."""

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from domain.check.compare import is_valid_size
from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, volume
from domain.check.repair import Repair
from domain.check.rows import PAGE, CheckRepository
from domain.db.database import Database
from domain.errors import CisternError
from domain.storage.backends import Backends
from domain.storage.driver import StoredVolume

_INSPECT_MANUALLY: Final = "inspect it; a repair does not change it"


class UnknownData:
    """Checks all configured backends."""

    def __init__(self, database: Database, backends: Backends, repair: Repair) -> None:
        self._database = database
        self._backends = backends
        self._repair = repair

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Yield data without a row, and adopt it if ``repair``."""
        for backend in self._backends.names():
            try:
                async for finding in self._on_backend(backend, report, repair=repair):
                    yield finding
            except CisternError as error:
                yield Finding(CheckCode.UNREADABLE, f"backend {backend!r}", error.message, "repair the backend")

    async def _on_backend(self, backend: str, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        after: UUID | None = None
        while ids := await self._backends.get(backend).inventory(after, PAGE):
            after = ids[-1]
            report.checked["volumes on backends"] += len(ids)
            for volume_id in await self._unknown(backend, ids):
                async for finding in self._of_volume(backend, volume_id, repair=repair):
                    yield finding

    async def _unknown(self, backend: str, ids: Sequence[UUID]) -> Sequence[UUID]:
        async with self._database.transaction() as session:
            known = await CheckRepository(session).known(backend, ids)
        return [volume_id for volume_id in ids if volume_id not in known]

    async def _of_volume(self, backend: str, volume_id: UUID, *, repair: bool) -> AsyncIterator[Finding]:
        """Check the data of one volume that has no row. Ids are never reused, so only an adoption can add one."""
        stored = await self._backends.get(backend).stat(volume_id, ())
        if stored is None or not await self._unknown(backend, [volume_id]):
            return
        for finding in self._findings(backend, volume_id, stored):
            if not (repair and finding.repairable):
                yield finding
            elif await self._repair_finding(finding.code, backend, volume_id, stored):
                yield finding.as_repaired()
            elif await self._unknown(backend, [volume_id]):  # otherwise another check has just adopted it
                yield finding.with_remedy(_INSPECT_MANUALLY)

    def _findings(self, backend: str, volume_id: UUID, stored: StoredVolume) -> Sequence[Finding]:
        subject, findings = volume(volume_id), []
        if stored.volume.size is not None or stored.snapshots:
            path = self._backends.get(backend).path(volume_id) or f"backend {backend!r}"
            problem = f"no row for {path} ({stored.volume.size} bytes, {len(stored.snapshots)} snapshots)"
            remedy = REPAIR_COMMAND if is_valid_size(stored.volume.size) else _INSPECT_MANUALLY
            findings.append(Finding(CheckCode.NO_ROW, subject, problem, remedy))
        problem = "no job will publish or remove"
        findings += [Finding(CheckCode.LEFTOVER, subject, f"{problem} {left.path}") for left in stored.leftovers]
        return findings

    async def _repair_finding(self, code: CheckCode, backend: str, volume_id: UUID, stored: StoredVolume) -> bool:
        if code is CheckCode.NO_ROW:
            return await self._repair.adopt_volume(volume_id, backend, stored)
        await self._backends.get(backend).sweep(volume_id, stored.leftovers)
        return True
