"""Rows against their backends: each volume with its snapshots, page by page, and again whatever looks wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.database import Database
from domain.errors import CisternError
from domain.inspection.findings import MENDS, Code, Finding, Report, snapshot, volume
from domain.inspection.judgement import fits, judge
from domain.inspection.mending import Mending
from domain.inspection.rows import PAGE, InspectionRepository, Seen, Shelf
from domain.storage.backends import Backends
from domain.storage.driver import Leftover, Sighting, Stored
from domain.volumes.states import VolumeState

AT_ONCE: Final = 8
_LATER: Final = "check again when its volume is at rest"
_LAST_BYTES: Final = "may be the last of a volume whose row is still there: look into it before it is swept"


@dataclass(frozen=True)
class Suspect:
    """What looks wrong about one thing on a shelf; ``seen`` None where no row knows it."""

    id: UUID
    seen: Seen | None
    findings: Sequence[Finding]
    stored: Stored | None = None
    leftovers: Sequence[Leftover] = ()


class Shelves:
    """Looks through all volumes that have a row."""

    def __init__(self, database: Database, backends: Backends, mending: Mending) -> None:
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
            async for finding in self._look_through(shelves, repair=repair):
                yield finding

    async def _look_through(self, shelves: Sequence[Shelf], *, repair: bool) -> AsyncIterator[Finding]:
        found = await asyncio.gather(*(self._suspects(shelf) for shelf in shelves))
        suspicious = {shelf.volume.id: (shelf, suspects) for shelf, suspects in zip(shelves, found, strict=True)}
        again = await self._among([volume_id for volume_id, (_, suspects) in suspicious.items() if suspects])
        for volume_id, now in again.items():
            before, suspects = suspicious[volume_id]
            for suspect in suspects:
                if _unmoved(suspect, before, now):
                    for finding in await self._mended(before, suspect) if repair else suspect.findings:
                        yield finding

    async def _suspects(self, shelf: Shelf) -> list[Suspect]:
        if shelf.backend not in self._backends:
            return list(_rows(shelf, None))
        try:
            async with self._slots:
                sighting = await self._backends.reach(shelf.backend).look(shelf.volume.id, shelf.snapshots.keys())
        except CisternError as error:
            finding = Finding(Code.UNREADABLE, volume(shelf.volume.id), error.message, "see to the backend")
            return [Suspect(shelf.volume.id, shelf.volume, [finding])]
        # Rows last: mending one moves it, and what has no row of its own is judged by its volume's.
        return [*_strangers(shelf, sighting), *_rows(shelf, sighting)]

    async def _mended(self, shelf: Shelf, suspect: Suspect) -> Sequence[Finding]:
        """Mend what can be mended; what moved at the last moment was somebody else's to mend, and is not told."""
        mendable = [finding for finding in suspect.findings if finding.mendable]
        rest = [finding for finding in suspect.findings if not finding.mendable]
        if mendable and shelf.backend not in self._backends:
            return [*rest, *(finding.left(f"configure the backend {shelf.backend!r}") for finding in mendable)]
        try:
            done = not mendable or await self._mend(shelf, suspect, {finding.code for finding in mendable})
        except CisternError as error:
            return [*rest, *(finding.left(f"{error.message} Check again.") for finding in mendable)]
        return [*rest, *(finding.mended() for finding in mendable if done)]

    async def _mend(self, shelf: Shelf, suspect: Suspect, codes: set[Code]) -> bool:
        if suspect.leftovers:
            await self._backends.reach(shelf.backend).sweep(shelf.volume.id, suspect.leftovers)
            return True
        if suspect.seen is None and suspect.stored is not None:
            return await self._mending.adopt_snapshot(shelf.volume, suspect.id, suspect.stored)
        return suspect.seen is None or await self._mending.mend(suspect.seen, shelf.backend, suspect.stored, codes)

    def _without_backend(self, shelves: Sequence[Shelf]) -> Iterator[Finding]:
        for name in sorted({shelf.backend for shelf in shelves} - self._unreachable):
            if name not in self._backends:
                self._unreachable.add(name)
                problem = "has volumes, but is not configured, so they cannot be looked at"
                yield Finding(Code.NO_BACKEND, f"backend {name!r}", problem, "name it in CISTERN_BACKENDS")

    async def _page(self, after: UUID | None) -> list[Shelf]:
        async with self._database.transaction() as session:
            return await InspectionRepository(session).page(after, PAGE)

    async def _among(self, volume_ids: Sequence[UUID]) -> dict[UUID, Shelf]:
        async with self._database.transaction() as session:
            return await InspectionRepository(session).among(volume_ids)


def _rows(shelf: Shelf, sighting: Sighting | None) -> Iterator[Suspect]:
    """Judge the volume and its snapshots."""
    stored = {shelf.volume.id: sighting.volume, **sighting.snapshots} if sighting else {}
    for seen in (shelf.volume, *shelf.snapshots.values()):
        if findings := judge(seen, stored.get(seen.id)):
            yield Suspect(seen.id, seen, findings, stored.get(seen.id))


def _strangers(shelf: Shelf, sighting: Sighting | None) -> Iterator[Suspect]:
    """Find snapshots without a row, and what attempts have left that no job will clear away."""
    if sighting is None:
        return
    for snapshot_id, stored in sighting.snapshots.items():
        if snapshot_id not in shelf.snapshots and stored.size is not None:
            problem = f"is kept of volume {shelf.volume.id} ({stored.size} bytes), but has no row"
            remedy = MENDS if shelf.volume.state is not VolumeState.DELETING and fits(stored.size) else _LATER
            yield Suspect(snapshot_id, None, [Finding(Code.NO_ROW, snapshot(snapshot_id), problem, remedy)], stored)
    for leftover in sighting.leftovers:
        seen = _row_of(shelf, leftover)
        if (seen or shelf.volume).rests:
            yield Suspect(leftover.subject_id, seen, [_leftover(shelf, sighting, leftover)], None, [leftover])


def _row_of(shelf: Shelf, leftover: Leftover) -> Seen | None:
    return shelf.volume if leftover.subject_id == shelf.volume.id else shelf.snapshots.get(leftover.subject_id)


def _leftover(shelf: Shelf, sighting: Sighting, leftover: Leftover) -> Finding:
    name = volume if leftover.subject_id == shelf.volume.id else snapshot
    last = leftover.trash and shelf.volume.state is VolumeState.AVAILABLE and sighting.volume.size is None
    problem = f"nobody will publish or clear away {leftover.path}"
    return Finding(Code.LEFTOVER, name(leftover.subject_id), problem, _LAST_BYTES if last else MENDS)


def _unmoved(suspect: Suspect, before: Shelf, now: Shelf) -> bool:
    """Tell whether nobody has touched the row since; for what has no row, its volume's."""
    rows = {now.volume.id: now.volume, **now.snapshots}
    if suspect.seen is None:
        return now.volume == before.volume and suspect.id not in rows
    return rows.get(suspect.id) == suspect.seen
