"""Backends against rows: what is kept there of volumes that no row knows. It is never deleted, only given a row."""

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from domain.database import Database
from domain.errors import CisternError
from domain.inspection.findings import MENDS, Code, Finding, Report, volume
from domain.inspection.judgement import fits
from domain.inspection.mending import Mending
from domain.inspection.rows import PAGE, InspectionRepository
from domain.storage.backends import Backends
from domain.storage.driver import Sighting

_BY_HAND: Final = "look into it; it is left alone"


class Strays:
    """Looks through all backends."""

    def __init__(self, database: Database, backends: Backends, mending: Mending) -> None:
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
                yield Finding(Code.UNREADABLE, f"backend {backend!r}", error.message, "see to the backend")

    async def _on(self, backend: str, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        after: UUID | None = None
        while ids := await self._backends.reach(backend).inventory(after, PAGE):
            after = ids[-1]
            report.looked_at["volumes on backends"] += len(ids)
            for volume_id in await self._unknown(backend, ids):
                async for finding in self._stray(backend, volume_id, repair=repair):
                    yield finding

    async def _unknown(self, backend: str, ids: Sequence[UUID]) -> Sequence[UUID]:
        async with self._database.transaction() as session:
            known = await InspectionRepository(session).known(backend, ids)
        return [volume_id for volume_id in ids if volume_id not in known]

    async def _stray(self, backend: str, volume_id: UUID, *, repair: bool) -> AsyncIterator[Finding]:
        """Look at one, now that there is no row: ids are never used again, so none will come but by adoption."""
        sighting = await self._backends.reach(backend).look(volume_id, ())
        if sighting is None or not await self._unknown(backend, [volume_id]):
            return
        for finding in self._findings(backend, volume_id, sighting):
            if not (repair and finding.mendable):
                yield finding
            elif await self._mend(finding.code, backend, volume_id, sighting):
                yield finding.mended()
            elif await self._unknown(backend, [volume_id]):  # else another inspection has just adopted it
                yield finding.left(_BY_HAND)

    def _findings(self, backend: str, volume_id: UUID, sighting: Sighting) -> Sequence[Finding]:
        name, findings = volume(volume_id), []
        if sighting.volume.size is not None or sighting.snapshots:
            place = self._backends.reach(backend).path(volume_id) or f"backend {backend!r}"
            problem = f"no row knows {place} ({sighting.volume.size} bytes, {len(sighting.snapshots)} snapshots)"
            findings.append(Finding(Code.NO_ROW, name, problem, MENDS if fits(sighting.volume.size) else _BY_HAND))
        problem = "nobody will publish or clear away"
        findings += [Finding(Code.LEFTOVER, name, f"{problem} {leftover.path}") for leftover in sighting.leftovers]
        return findings

    async def _mend(self, code: Code, backend: str, volume_id: UUID, sighting: Sighting) -> bool:
        if code is Code.NO_ROW:
            return await self._mending.adopt_volume(volume_id, backend, sighting)
        await self._backends.reach(backend).sweep(volume_id, sighting.leftovers)
        return True
