"""Compares rows with their backends: every volume with its snapshots, page by page, and every difference twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.check.compare import compare, is_valid_size
from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, snapshot, volume
from domain.check.repair import Repair
from domain.check.rows import PAGE, CheckRepository, RowState, VolumeRows
from domain.db.database import Database
from domain.errors import CisternError
from domain.operations import VolumeState
from domain.storage.backends import Backends
from domain.storage.driver import Leftover, StoredObject, StoredVolume

MAX_CONCURRENT_STATS: Final = 8
_CHECK_LATER: Final = "check again when its volume is idle"
_ONLY_COPY: Final = "may be the only copy of a volume that still has a row: inspect it before it is swept"


@dataclass(frozen=True)
class Suspicion:
    """A difference that a second read of the rows must confirm; ``row`` None if the subject has no row."""

    id: UUID
    row: RowState | None
    findings: Sequence[Finding]
    stored: StoredObject | None = None
    leftovers: Sequence[Leftover] = ()


class RowsVsStorage:
    """Checks all volumes that have a row."""

    def __init__(self, database: Database, backends: Backends, repair: Repair) -> None:
        self._database = database
        self._backends = backends
        self._repair = repair
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_STATS)
        self._reported_backends: set[str] = set()

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Yield the differences, repaired where possible if ``repair``."""
        after: UUID | None = None
        while page := await self._page(after):
            after = page[-1].volume.id
            report.checked["volumes"] += len(page)
            report.checked["snapshots"] += sum(len(rows.snapshots) for rows in page)
            for finding in self._missing_backends(page):
                yield finding
            async for finding in self._check_page(page, repair=repair):
                yield finding

    async def _check_page(self, page: Sequence[VolumeRows], *, repair: bool) -> AsyncIterator[Finding]:
        found = await asyncio.gather(*(self._suspicions(rows) for rows in page))
        suspicious = {
            rows.volume.id: (rows, suspicions) for rows, suspicions in zip(page, found, strict=True) if suspicions
        }
        for volume_id, now in (await self._get_many(list(suspicious))).items():
            before, suspicions = suspicious[volume_id]
            for suspicion in suspicions:
                if _unchanged(suspicion, before, now):
                    for finding in await self._repaired(before, suspicion) if repair else suspicion.findings:
                        yield finding

    async def _suspicions(self, rows: VolumeRows) -> list[Suspicion]:
        if rows.backend not in self._backends:
            return list(_differences(rows, None))
        try:
            async with self._slots:
                stored = await self._backends.get(rows.backend).stat(rows.volume.id, rows.snapshots.keys())
        except CisternError as error:
            finding = Finding(CheckCode.UNREADABLE, volume(rows.volume.id), error.message, "repair the backend")
            return [Suspicion(rows.volume.id, rows.volume, [finding])]
        # Rows come last: a repair changes the row, and whatever has no row of its own is confirmed by its volume's.
        return [*_without_row(rows, stored), *_differences(rows, stored)]

    async def _repaired(self, rows: VolumeRows, suspicion: Suspicion) -> Sequence[Finding]:
        """Repair what can be repaired and return the findings.

        If the row has changed in the meantime, the repairable findings are dropped: a job or another check has dealt
        with them.
        """
        repairable = [finding for finding in suspicion.findings if finding.repairable]
        others = [finding for finding in suspicion.findings if not finding.repairable]
        if repairable and rows.backend not in self._backends:
            remedy = f"configure the backend {rows.backend!r}"
            return [*others, *(finding.with_remedy(remedy) for finding in repairable)]
        try:
            codes = {finding.code for finding in repairable}
            repaired = not repairable or await self._repair_suspicion(rows, suspicion, codes)
        except CisternError as error:
            return [*others, *(finding.with_remedy(f"{error.message} Check again.") for finding in repairable)]
        return [*others, *(finding.as_repaired() for finding in repairable if repaired)]

    async def _repair_suspicion(self, rows: VolumeRows, suspicion: Suspicion, codes: set[CheckCode]) -> bool:
        if suspicion.leftovers:
            await self._backends.get(rows.backend).sweep(rows.volume.id, suspicion.leftovers)
            return True
        if suspicion.row is not None:
            return await self._repair.repair_row(suspicion.row, rows.backend, suspicion.stored, codes)
        return suspicion.stored is None or await self._repair.adopt_snapshot(
            rows.volume, suspicion.id, suspicion.stored
        )

    def _missing_backends(self, page: Sequence[VolumeRows]) -> Iterator[Finding]:
        for name in sorted({rows.backend for rows in page} - self._reported_backends):
            if name not in self._backends:
                self._reported_backends.add(name)
                problem = "has volumes, but is not configured, so they cannot be checked"
                yield Finding(CheckCode.NO_BACKEND, f"backend {name!r}", problem, "add it to CISTERN_BACKENDS")

    async def _page(self, after: UUID | None) -> list[VolumeRows]:
        async with self._database.transaction() as session:
            return await CheckRepository(session).page(after, PAGE)

    async def _get_many(self, volume_ids: Sequence[UUID]) -> dict[UUID, VolumeRows]:
        async with self._database.transaction() as session:
            return await CheckRepository(session).get_many(volume_ids)


def _differences(rows: VolumeRows, stored_volume: StoredVolume | None) -> Iterator[Suspicion]:
    """Compare the rows of the volume and its snapshots with what is stored."""
    stored = {rows.volume.id: stored_volume.volume, **stored_volume.snapshots} if stored_volume else {}
    for row in (rows.volume, *rows.snapshots.values()):
        if findings := compare(row, stored.get(row.id)):
            yield Suspicion(row.id, row, findings, stored.get(row.id))


def _without_row(rows: VolumeRows, stored_volume: StoredVolume | None) -> Iterator[Suspicion]:
    """Find snapshots without a row, and leftovers of attempts that no job will remove."""
    if stored_volume is None:
        return
    for snapshot_id, stored in stored_volume.snapshots.items():
        if snapshot_id not in rows.snapshots and stored.size is not None:
            problem = f"is stored for volume {rows.volume.id} ({stored.size} bytes), but has no row"
            adoptable = rows.volume.state is not VolumeState.DELETING and is_valid_size(stored.size)
            remedy = REPAIR_COMMAND if adoptable else _CHECK_LATER
            finding = Finding(CheckCode.NO_ROW, snapshot(snapshot_id), problem, remedy)
            yield Suspicion(snapshot_id, None, [finding], stored)
    for leftover in stored_volume.leftovers:
        row = _row_of(rows, leftover)
        if (row or rows.volume).at_rest:
            yield Suspicion(leftover.subject_id, row, [_leftover(rows, stored_volume, leftover)], None, [leftover])


def _row_of(rows: VolumeRows, leftover: Leftover) -> RowState | None:
    return rows.volume if leftover.subject_id == rows.volume.id else rows.snapshots.get(leftover.subject_id)


def _leftover(rows: VolumeRows, stored: StoredVolume, leftover: Leftover) -> Finding:
    name = volume if leftover.subject_id == rows.volume.id else snapshot
    only_copy = leftover.trash and rows.volume.state is VolumeState.AVAILABLE and stored.volume.size is None
    problem = f"no job will publish or remove {leftover.path}"
    remedy = _ONLY_COPY if only_copy else REPAIR_COMMAND
    return Finding(CheckCode.LEFTOVER, name(leftover.subject_id), problem, remedy)


def _unchanged(suspicion: Suspicion, before: VolumeRows, now: VolumeRows) -> bool:
    """Return whether the row has not changed between the two reads; without a row, that of its volume."""
    rows = {now.volume.id: now.volume, **now.snapshots}
    if suspicion.row is None:
        return now.volume == before.volume and suspicion.id not in rows
    return rows.get(suspicion.id) == suspicion.row
