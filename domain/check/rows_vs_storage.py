"""Compares rows with their backends: every row with its data, and all data with the rows, page by page."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from uuid import UUID

from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, leased_remedy
from domain.check.repair import Repair
from domain.check.rows import FIRST, PAGE, RowReader, RowState, VolumeRows
from domain.errors import CisternError
from domain.operations import SnapshotState, VolumeState
from domain.storage.backends import NOT_USED_YET, Backends
from domain.storage.checked import is_stored_size
from domain.storage.context import Fence
from domain.storage.driver import StoredObject, StoredVolume
from domain.storage.errors import BackendUnavailable
from domain.storage.intermediate import is_intermediate
from domain.volumes.model import MAX_SIZE

_MAX_CONCURRENT_STATS: Final = 8
_CHECK_LATER: Final = "check again when its volume is idle"
_ONLY_COPY: Final = "may be the only copy of a volume that still has a row: inspect it before it is swept"
_INSPECT_MANUALLY: Final = "inspect it; a repair does not change it"
_RESTORE_FILE: Final = "is the backend mounted? otherwise restore the file, or delete it here too"
_INVALID_SIZE: Final = f"a size must be between 1 and {MAX_SIZE}: inspect the file"


@dataclass(frozen=True)
class Suspicion:
    """A difference that a second read of the rows must confirm; ``row`` None if the subject has no row.

    ``repair`` repairs all repairable findings at once, or returns False if the row has changed since it was read.
    """

    id: UUID
    row: RowState | None
    findings: Sequence[Finding]
    repair: Callable[[], Awaitable[bool]] | None = None


class RowsVsStorage:
    """Checks all volumes that have a row, with their snapshots; a second read of the rows confirms a difference."""

    def __init__(self, rows: RowReader, backends: Backends, repair: Repair) -> None:
        self._rows = rows
        self._backends = backends
        self._repair = repair
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_STATS)

    async def findings(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        """Yield the differences, repaired where possible if ``repair``."""
        after, reported_backends = FIRST, set[str]()
        while page := await self._rows.page(after):
            after = page[-1].volume.id
            checked["volumes"] += len(page)
            checked["snapshots"] += sum(len(rows.snapshots) for rows in page)
            for finding in self._out_of_reach(page, reported_backends):
                yield finding
            async for before, suspicion in self._confirmed(page):
                name = None if suspicion.row is None else suspicion.row.name
                for finding in await self._repaired(before, suspicion) if repair else suspicion.findings:
                    yield replace(finding, name=name)

    def _out_of_reach(self, page: Sequence[VolumeRows], reported: set[str]) -> Iterator[Finding]:
        """Find backends that have volumes, but cannot be looked at; `UnknownData` reports those that are used."""
        for backend in sorted({rows.backend for rows in page} - reported):
            if backend not in self._backends:
                problem = "has volumes, but is not configured, so they cannot be checked"
                yield Finding(CheckCode.NO_BACKEND, f"backend {backend!r}", problem, "add it to CISTERN_BACKENDS")
            elif self._backends.problem(backend) == NOT_USED_YET:
                if not any(rows.backend == backend and rows.volume.must_have_data for rows in page):
                    continue  # its volumes are still to be created
                problem = f"has volumes, but {NOT_USED_YET}"
                yield Finding(CheckCode.UNREADABLE, f"backend {backend!r}", problem, "is its disk mounted?")
            reported.add(backend)

    async def _confirmed(self, page: Sequence[VolumeRows]) -> AsyncIterator[tuple[VolumeRows, Suspicion]]:
        """Compare the volumes with their backends, and yield the differences whose rows have not changed meanwhile."""
        found = await asyncio.gather(*(self._suspicions(rows) for rows in page))
        suspicious = {rows.volume.id: (rows, some) for rows, some in zip(page, found, strict=True) if some}
        for now in await self._rows.get_many(suspicious):
            before, suspicions = suspicious[now.volume.id]
            for suspicion in suspicions:
                if _is_unchanged(suspicion, before, now):
                    yield before, suspicion

    async def _suspicions(self, rows: VolumeRows) -> list[Suspicion]:
        if rows.backend not in self._backends:
            return list(self._differences(rows, None))
        try:
            async with self._slots:
                stored = await self._backends.get(rows.backend).stat(rows.volume.id, rows.snapshots.keys())
        except BackendUnavailable:
            return []  # `UnknownData` reports the backend, once
        except CisternError as error:
            finding = Finding(CheckCode.UNREADABLE, _subject(rows.volume), error.message, "repair the backend")
            return [Suspicion(rows.volume.id, rows.volume, [finding])]
        if stored is None:
            return list(self._differences(rows, None))
        # Rows come last: a repair changes the row, and whatever has no row of its own is confirmed by its volume's.
        return [*self._without_row(rows, stored), *self._leftovers(rows, stored), *self._differences(rows, stored)]

    def _without_row(self, rows: VolumeRows, stored_volume: StoredVolume) -> Iterator[Suspicion]:
        """Find snapshots without a row."""
        for snapshot_id, stored in stored_volume.snapshots.items():
            if is_intermediate(snapshot_id):
                yield from self._intermediate(rows, snapshot_id, stored)
            elif snapshot_id not in rows.snapshots and stored.size is not None:
                problem = f"is stored for volume {rows.volume.id} ({stored.size} bytes), but has no row"
                adoptable = rows.volume.state is not VolumeState.DELETING and is_stored_size(stored.size)
                remedy = REPAIR_COMMAND if adoptable else _CHECK_LATER
                finding = Finding(CheckCode.NO_ROW, f"snapshot {snapshot_id}", problem, remedy)
                repair = partial(self._repair.adopt_snapshot, rows.volume, snapshot_id, stored)
                yield Suspicion(snapshot_id, None, [finding], repair)

    def _intermediate(self, rows: VolumeRows, snapshot_id: UUID, stored: StoredObject) -> Iterator[Suspicion]:
        """Find the intermediate snapshot of a clone whose job has ended: that job has held the volume."""
        if rows.volume.at_rest and stored.size is not None:
            problem = f"is the intermediate snapshot of a clone of volume {rows.volume.id}, and no job will remove it"
            finding = Finding(CheckCode.LEFTOVER, f"snapshot {snapshot_id}", problem)
            repair = partial(self._repair.remove_intermediate, rows.volume.id, rows.backend, snapshot_id, stored)
            yield Suspicion(snapshot_id, None, [finding], repair)

    def _leftovers(self, rows: VolumeRows, stored: StoredVolume) -> Iterator[Suspicion]:
        """Find leftovers of attempts that no job will remove."""
        for leftover in stored.leftovers:
            of_volume = leftover.subject_id == rows.volume.id
            row = rows.volume if of_volume else rows.snapshots.get(leftover.subject_id)
            if (row or rows.volume).at_rest:
                only_copy = leftover.trash and rows.volume.state is VolumeState.AVAILABLE and stored.volume.size is None
                finding = Finding(
                    CheckCode.LEFTOVER,
                    f"{'volume' if of_volume else 'snapshot'} {leftover.subject_id}",
                    f"no job will publish or remove {leftover.path}",
                    _ONLY_COPY if only_copy else REPAIR_COMMAND,
                )
                repair = partial(self._repair.sweep, rows.volume.id, rows.backend, [leftover])
                yield Suspicion(leftover.subject_id, row, [finding], repair)

    def _differences(self, rows: VolumeRows, stored_volume: StoredVolume | None) -> Iterator[Suspicion]:
        """Compare the rows of the volume and its snapshots with what is stored; None if the backend stores nothing."""
        all_stored = {rows.volume.id: stored_volume.volume, **stored_volume.snapshots} if stored_volume else {}
        for row in (rows.volume, *rows.snapshots.values()):
            stored = all_stored.get(row.id)
            if findings := list(_compare(row, stored)):
                codes = {finding.code for finding in findings if finding.repairable}
                yield Suspicion(
                    row.id, row, findings, partial(self._repair.repair_row, row, rows.backend, stored, codes)
                )

    async def _repaired(self, rows: VolumeRows, suspicion: Suspicion) -> Sequence[Finding]:
        """Repair what can be repaired and return the findings.

        If the row has changed in the meantime, the repairable findings are dropped: a job or another check has dealt
        with them.
        """
        findings = suspicion.findings
        if suspicion.repair is None or not any(finding.repairable for finding in findings):
            return findings
        if rows.backend not in self._backends:
            return _with_remedy(findings, f"configure the backend {rows.backend!r}")
        try:
            repaired = await suspicion.repair()
        except CisternError as error:
            return _with_remedy(findings, f"{error.message} Check again.")
        return [replace(one, repaired=one.repairable) for one in findings if repaired or not one.repairable]


def _with_remedy(findings: Sequence[Finding], remedy: str) -> list[Finding]:
    """Return the findings, of which the repairable ones could not be repaired."""
    return [replace(finding, remedy=remedy) if finding.repairable else finding for finding in findings]


def _is_unchanged(suspicion: Suspicion, before: VolumeRows, now: VolumeRows) -> bool:
    """Return whether the row has not changed between the two reads; without a row, that of its volume."""
    rows = {now.volume.id: now.volume, **now.snapshots}
    if suspicion.row is None:
        return now.volume == before.volume and suspicion.id not in rows
    return rows.get(suspicion.id) == suspicion.row


class UnknownData:
    """Checks all configured backends for volumes that have no row. Their data gets a new row, and is never deleted."""

    def __init__(self, rows: RowReader, backends: Backends, repair: Repair) -> None:
        self._rows = rows
        self._backends = backends
        self._repair = repair

    async def findings(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        """Yield data without a row, and adopt it if ``repair``."""
        used = [name for name in self._backends if self._backends.problem(name) != NOT_USED_YET]
        for backend in used:
            try:
                async for finding in self._on_backend(backend, checked, repair=repair):
                    yield finding
            except CisternError as error:
                yield Finding(CheckCode.UNREADABLE, f"backend {backend!r}", error.message, "repair the backend")

    async def _on_backend(self, backend: str, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        after: UUID | None = None
        while ids := await self._backends.get(backend).inventory(after, PAGE):
            after = ids[-1]
            checked["volumes on backends"] += len(ids)
            for volume_id in await self._rows.unknown(backend, ids):
                try:
                    async for finding in self._of_volume(backend, volume_id, repair=repair):
                        yield finding
                except BackendUnavailable:
                    raise
                except CisternError as error:
                    yield Finding(CheckCode.UNREADABLE, f"volume {volume_id}", error.message, _INSPECT_MANUALLY)

    async def _of_volume(self, backend: str, volume_id: UUID, *, repair: bool) -> AsyncIterator[Finding]:
        """Check the data of one volume that has no row. Ids are never reused, so only an adoption can add one."""
        stored = await self._backends.get(backend).stat(volume_id, ())
        if stored is None or not await self._rows.unknown(backend, [volume_id]):
            return
        subject = f"volume {volume_id}"
        if stored.volume.size is not None or stored.snapshots:
            path = self._backends.get(backend).path(volume_id) or f"backend {backend!r}"
            problem = f"no row for {path} ({stored.volume.size} bytes, {len(stored.snapshots)} snapshots)"
            remedy = REPAIR_COMMAND if is_stored_size(stored.volume.size) else _INSPECT_MANUALLY
            finding = Finding(CheckCode.NO_ROW, subject, problem, remedy)
            if not (repair and finding.repairable):
                yield finding
            elif await self._repair.adopt_volume(volume_id, backend, stored):
                yield replace(finding, repaired=True)
            elif await self._rows.unknown(backend, [volume_id]):  # otherwise another check has just adopted it
                yield replace(finding, remedy=_INSPECT_MANUALLY)
        if repair and stored.leftovers:
            await self._repair.sweep(volume_id, backend, stored.leftovers)
        for leftover in stored.leftovers:
            problem = f"no job will publish or remove {leftover.path}"
            yield Finding(CheckCode.LEFTOVER, subject, problem, repaired=repair)


# --- the comparison of a row with its stored state, without SQL or storage -------------------------------------------


def _subject(row: RowState) -> str:
    return f"{'volume' if row.is_volume else 'snapshot'} {row.id}"


def _compare(row: RowState, stored: StoredObject | None) -> Iterator[Finding]:
    if not row.at_rest and row.holder is None:
        yield _without_job(row, stored)
    elif stored is not None:
        yield from _data(row, stored)
        yield from _fence(row, stored.fence)


def _without_job(row: RowState, stored: StoredObject | None) -> Finding:
    problem = f"is {row.state}, but no live job holds it"
    # A backend with neither data nor a fence of the subject may be the wrong disk, unless the subject was just being
    # created.
    unknown_to_backend = stored is not None and stored.size is None and stored.fence is None
    being_created = row.state in (VolumeState.CREATING, SnapshotState.TAKING)
    remedy = _RESTORE_FILE if unknown_to_backend and not being_created else REPAIR_COMMAND
    return Finding(CheckCode.NO_JOB, _subject(row), problem, remedy)


def _data(row: RowState, stored: StoredObject) -> Iterator[Finding]:
    if not row.must_have_data:
        return
    if stored.size is None:
        deleted = stored.fence is not None and stored.fence.version >= row.version
        problem = f"is {row.state}, but its data {'was deleted later' if deleted else 'is missing'}"
        yield Finding(CheckCode.DATA_MISSING, _subject(row), problem, REPAIR_COMMAND if deleted else _RESTORE_FILE)
    elif stored.size != row.size:
        problem = f"has {stored.size} bytes on its backend, {row.size} in its row"
        remedy = REPAIR_COMMAND if is_stored_size(stored.size) else _INVALID_SIZE
        yield Finding(CheckCode.SIZE_DIFFERS, _subject(row), problem, remedy)


def _fence(row: RowState, fence: Fence | None) -> Iterator[Finding]:
    """Find a fence at which the next attempt would be refused.

    The version of an idle row is above every published fence. The fence of a job that holds the row may be equal: its
    current attempt may have published.
    """
    holder = row.holder
    own = holder.fence if holder is not None and holder.fence is not None else None
    if fence is None or not (own < fence if own is not None else row.version <= fence.version):
        return
    leased_seconds = holder.leased_seconds if holder is not None and holder.fence_in_params else 0.0
    remedy = leased_remedy(leased_seconds) if leased_seconds else REPAIR_COMMAND
    problem = f"its backend has the fence {tuple(fence)}, which is not below the row's {tuple(own or (row.version,))}"
    yield Finding(CheckCode.FENCE_BEHIND, _subject(row), problem, remedy, leased_seconds=leased_seconds)
