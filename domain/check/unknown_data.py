"""Backends against rows: what is kept there of volumes that no row knows. It is never deleted, only given a row."""

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from domain.check.compare import fits
from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, volume
from domain.check.repair import Repair
from domain.check.rows import PAGE, CheckRepository
from domain.db.database import Database
from domain.errors import CisternError
from domain.storage.backends import Backends
from domain.storage.driver import StoredVolume

_MANUALLY: Final = "look into it; it is left alone"


class UnknownData:
    """Looks through all backends."""

    def __init__(self, database: Database, backends: Backends, mending: Repair) -> None:
        self._database = database
        self._backends = backends
        self._mending = mending

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell what no row knows, and adopt it if ``repair`` is asked for."""
        for backend in self._backends.names():
            try:
                async for finding in self._on(backend, report, repair=repair):
                    yield finding
            except CisternError as error:
                yield Finding(CheckCode.UNREADABLE, f"backend {backend!r}", error.message, "see to the backend")

    async def _on(self, backend: str, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        after: UUID | None = None
        while ids := await self._backends.get(backend).inventory(after, PAGE):
            after = ids[-1]
            report.looked_at["volumes on backends"] += len(ids)
            for volume_id in await self._unknown(backend, ids):
                async for finding in self._unknown_volume(backend, volume_id, repair=repair):
                    yield finding

    async def _unknown(self, backend: str, ids: Sequence[UUID]) -> Sequence[UUID]:
        async with self._database.transaction() as session:
            known = await CheckRepository(session).known(backend, ids)
        return [volume_id for volume_id in ids if volume_id not in known]

    async def _unknown_volume(self, backend: str, volume_id: UUID, *, repair: bool) -> AsyncIterator[Finding]:
        """Look at one, now that there is no row: ids are never used again, so none will come but by adoption."""
        sighting = await self._backends.get(backend).stat(volume_id, ())
        if sighting is None or not await self._unknown(backend, [volume_id]):
            return
        for finding in self._findings(backend, volume_id, sighting):
            if not (repair and finding.repairable):
                yield finding
            elif await self._mend(finding.code, backend, volume_id, sighting):
                yield finding.as_repaired()
            elif await self._unknown(backend, [volume_id]):  # else another inspection has just adopted it
                yield finding.left(_MANUALLY)

    def _findings(self, backend: str, volume_id: UUID, sighting: StoredVolume) -> Sequence[Finding]:
        name, findings = volume(volume_id), []
        if sighting.volume.size is not None or sighting.snapshots:
            place = self._backends.get(backend).path(volume_id) or f"backend {backend!r}"
            problem = f"no row knows {place} ({sighting.volume.size} bytes, {len(sighting.snapshots)} snapshots)"
            findings.append(
                Finding(CheckCode.NO_ROW, name, problem, REPAIR_COMMAND if fits(sighting.volume.size) else _MANUALLY)
            )
        problem = "nobody will publish or clear away"
        findings += [Finding(CheckCode.LEFTOVER, name, f"{problem} {leftover.path}") for leftover in sighting.leftovers]
        return findings

    async def _mend(self, code: CheckCode, backend: str, volume_id: UUID, sighting: StoredVolume) -> bool:
        if code is CheckCode.NO_ROW:
            return await self._mending.adopt_volume(volume_id, backend, sighting)
        await self._backends.get(backend).sweep(volume_id, sighting.leftovers)
        return True
