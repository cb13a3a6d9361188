"""Rows against their backends: each volume with its snapshots, page by page, and again whatever looks wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.check.compare import compare, fits
from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, snapshot, volume
from domain.check.repair import Repair
from domain.check.rows import PAGE, CheckRepository, RowState, VolumeRows
from domain.db.database import Database
from domain.errors import CisternError
from domain.storage.backends import Backends
from domain.storage.driver import Leftover, StoredObject, StoredVolume
from domain.volumes.states import VolumeState

AT_ONCE: Final = 8
_LATER: Final = "check again when its volume is at rest"
_LAST_BYTES: Final = "may be the last of a volume whose row is still there: look into it before it is swept"


@dataclass(frozen=True)
class Suspicion:
    """What looks wrong about one thing on a shelf; ``seen`` None where no row knows it."""

    id: UUID
    seen: RowState | None
    findings: Sequence[Finding]
    stored: StoredObject | None = None
    leftovers: Sequence[Leftover] = ()


class RowsVsStorage:
    """Looks through all volumes that have a row."""

    def __init__(self, database: Database, backends: Backends, mending: Repair) -> None:
        self._database = database
        self._backends = backends
        self._mending = mending
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._unreachable: set[str] = set()

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell what does not agree, mended if it can be and ``repair`` is asked for."""
        after: UUID | None = None
        while shelves := await self._page(after):
            after = shelves[-1].volume.id
            report.looked_at["volumes"] += len(shelves)
            report.looked_at["snapshots"] += sum(len(shelf.snapshots) for shelf in shelves)
            for finding in self._without_backend(shelves):
                yield finding
            async for finding in self._check_page(shelves, repair=repair):
                yield finding

    async def _check_page(self, shelves: Sequence[VolumeRows], *, repair: bool) -> AsyncIterator[Finding]:
        found = await asyncio.gather(*(self._suspicions(shelf) for shelf in shelves))
        suspicious = {shelf.volume.id: (shelf, suspects) for shelf, suspects in zip(shelves, found, strict=True)}
        again = await self._among([volume_id for volume_id, (_, suspects) in suspicious.items() if suspects])
        for volume_id, now in again.items():
            before, suspects = suspicious[volume_id]
            for suspect in suspects:
                if _unchanged(suspect, before, now):
                    for finding in await self._mended(before, suspect) if repair else suspect.findings:
                        yield finding

    async def _suspicions(self, shelf: VolumeRows) -> list[Suspicion]:
        if shelf.backend not in self._backends:
            return list(_rows(shelf, None))
        try:
            async with self._slots:
                sighting = await self._backends.get(shelf.backend).stat(shelf.volume.id, shelf.snapshots.keys())
        except CisternError as error:
            finding = Finding(CheckCode.UNREADABLE, volume(shelf.volume.id), error.message, "see to the backend")
            return [Suspicion(shelf.volume.id, shelf.volume, [finding])]
        # Rows last: mending one moves it, and what has no row of its own is judged by its volume's.
        return [*_unknown_snapshots(shelf, sighting), *_rows(shelf, sighting)]

    async def _mended(self, shelf: VolumeRows, suspect: Suspicion) -> Sequence[Finding]:
        """Mend what can be mended; what moved at the last moment was somebody else's to mend, and is not told."""
        repairable = [finding for finding in suspect.findings if finding.repairable]
        rest = [finding for finding in suspect.findings if not finding.repairable]
        if repairable and shelf.backend not in self._backends:
            return [*rest, *(finding.left(f"configure the backend {shelf.backend!r}") for finding in repairable)]
        try:
            done = not repairable or await self._mend(shelf, suspect, {finding.code for finding in repairable})
        except CisternError as error:
            return [*rest, *(finding.left(f"{error.message} Check again.") for finding in repairable)]
        return [*rest, *(finding.as_repaired() for finding in repairable if done)]

    async def _mend(self, shelf: VolumeRows, suspect: Suspicion, codes: set[CheckCode]) -> bool:
        if suspect.leftovers:
            await self._backends.get(shelf.backend).sweep(shelf.volume.id, suspect.leftovers)
            return True
        if suspect.seen is None and suspect.stored is not None:
            return await self._mending.adopt_snapshot(shelf.volume, suspect.id, suspect.stored)
        return suspect.seen is None or await self._mending.repair(suspect.seen, shelf.backend, suspect.stored, codes)

    def _without_backend(self, shelves: Sequence[VolumeRows]) -> Iterator[Finding]:
        for name in sorted({shelf.backend for shelf in shelves} - self._unreachable):
            if name not in self._backends:
                self._unreachable.add(name)
                problem = "has volumes, but is not configured, so they cannot be looked at"
                yield Finding(CheckCode.NO_BACKEND, f"backend {name!r}", problem, "name it in CISTERN_BACKENDS")

    async def _page(self, after: UUID | None) -> list[VolumeRows]:
        async with self._database.transaction() as session:
            return await CheckRepository(session).page(after, PAGE)

    async def _among(self, volume_ids: Sequence[UUID]) -> dict[UUID, VolumeRows]:
        async with self._database.transaction() as session:
            return await CheckRepository(session).among(volume_ids)


def _rows(shelf: VolumeRows, sighting: StoredVolume | None) -> Iterator[Suspicion]:
    """Judge the volume and its snapshots."""
    stored = {shelf.volume.id: sighting.volume, **sighting.snapshots} if sighting else {}
    for seen in (shelf.volume, *shelf.snapshots.values()):
        if findings := compare(seen, stored.get(seen.id)):
            yield Suspicion(seen.id, seen, findings, stored.get(seen.id))


def _unknown_snapshots(shelf: VolumeRows, sighting: StoredVolume | None) -> Iterator[Suspicion]:
    """Find snapshots without a row, and what attempts have left that no job will clear away."""
    if sighting is None:
        return
    for snapshot_id, stored in sighting.snapshots.items():
        if snapshot_id not in shelf.snapshots and stored.size is not None:
            problem = f"is kept of volume {shelf.volume.id} ({stored.size} bytes), but has no row"
            remedy = REPAIR_COMMAND if shelf.volume.state is not VolumeState.DELETING and fits(stored.size) else _LATER
            yield Suspicion(
                snapshot_id, None, [Finding(CheckCode.NO_ROW, snapshot(snapshot_id), problem, remedy)], stored
            )
    for leftover in sighting.leftovers:
        seen = _row_of(shelf, leftover)
        if (seen or shelf.volume).rests:
            yield Suspicion(leftover.subject_id, seen, [_leftover(shelf, sighting, leftover)], None, [leftover])


def _row_of(shelf: VolumeRows, leftover: Leftover) -> RowState | None:
    return shelf.volume if leftover.subject_id == shelf.volume.id else shelf.snapshots.get(leftover.subject_id)


def _leftover(shelf: VolumeRows, sighting: StoredVolume, leftover: Leftover) -> Finding:
    name = volume if leftover.subject_id == shelf.volume.id else snapshot
    last = leftover.trash and shelf.volume.state is VolumeState.AVAILABLE and sighting.volume.size is None
    problem = f"nobody will publish or clear away {leftover.path}"
    return Finding(CheckCode.LEFTOVER, name(leftover.subject_id), problem, _LAST_BYTES if last else REPAIR_COMMAND)


def _unchanged(suspect: Suspicion, before: VolumeRows, now: VolumeRows) -> bool:
    """Tell whether nobody has touched the row since; for what has no row, its volume's."""
    rows = {now.volume.id: now.volume, **now.snapshots}
    if suspect.seen is None:
        return now.volume == before.volume and suspect.id not in rows
    return rows.get(suspect.id) == suspect.seen
