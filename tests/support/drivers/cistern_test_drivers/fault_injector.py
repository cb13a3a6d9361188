"""A wrapper that delays, blocks or fails the operations of any driver and writes a journal of them.

Fault tests are judged by the journal: one line for each operation begun, published, refused, stopped or failed.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from cistern_test_drivers.faults import Faults
from cistern_test_drivers.hang_switch import HangSwitch
from cistern_test_drivers.journal import JournalGrant, OperationJournal
from domain.errors import ConfigurationError
from domain.storage.backends import DriverUrl
from domain.storage.backends import open_driver as open_inner
from domain.storage.context import Grant, Stopped
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredVolume, Usage
from domain.storage.errors import FenceRefused
from domain.storage.file.driver import FileDriver

DELAY_SLICE_SECONDS = 0.05
GATE_POLL_SECONDS = 0.01
SEALS = ("seal", "seal_snapshot")


class FaultInjector:
    """Delegates every operation to the inner driver, with the delays and faults of its options."""

    OPTIONS = ("delay_ms", "fail", "fail_after", "gate", "hang", "journal")

    def __init__(self, inner: StorageDriver, options: Mapping[str, str]) -> None:
        if "hang" in options and not isinstance(inner, FileDriver):
            raise ConfigurationError("hang=... needs a driver that works in threads: faulty+file:")
        self._inner = inner
        self._hang = Path(options["hang"]) if "hang" in options else None
        self._delay = _seconds(options.get("delay_ms", "0"))
        self._gate = Path(options["gate"]) if "gate" in options else None
        self._fail = Faults(options.get("fail", ""))
        self._fail_after = Faults(options.get("fail_after", ""))
        self._journal = _open_journal(options["journal"]) if "journal" in options else None

    def path(self, volume_id: UUID) -> str | None:
        """Return the inner driver's path."""
        return self._inner.path(volume_id)

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Create, with faults."""
        async with self._with_faults("create", volume_id, grant, size) as journaled:
            return await self._inner.create(volume_id, size, journaled)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Expand, with faults."""
        async with self._with_faults("expand", volume_id, grant, size) as journaled:
            return await self._inner.expand(volume_id, size, journaled)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Delete, with faults."""
        async with self._with_faults("delete", volume_id, grant) as journaled:
            await self._inner.delete(volume_id, journaled)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Seal; may fail, but is never delayed or blocked, because it brings delayed work to an end."""
        async with self._with_faults("seal", volume_id, grant) as journaled:
            return await self._inner.seal(volume_id, journaled)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Take a snapshot, with faults."""
        async with self._with_faults("take_snapshot", volume_id, grant, snapshot_id=snapshot_id) as journaled:
            return await self._inner.take_snapshot(volume_id, snapshot_id, journaled)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Restore, with faults."""
        async with self._with_faults("restore_snapshot", volume_id, grant, snapshot_id=snapshot_id) as journaled:
            return await self._inner.restore_snapshot(volume_id, snapshot_id, journaled)

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Clone, with faults; the volume in the journal is the new one."""
        async with self._with_faults("clone_snapshot", clone_id, grant, size, snapshot_id) as journaled:
            return await self._inner.clone_snapshot(volume_id, snapshot_id, clone_id, size, journaled)

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Delete the snapshot, with faults."""
        async with self._with_faults("delete_snapshot", volume_id, grant, snapshot_id=snapshot_id) as journaled:
            await self._inner.delete_snapshot(volume_id, snapshot_id, journaled)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Seal the snapshot; may fail, but is never delayed or blocked."""
        async with self._with_faults("seal_snapshot", volume_id, grant, snapshot_id=snapshot_id) as journaled:
            return await self._inner.seal_snapshot(volume_id, snapshot_id, journaled)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Measure, without faults."""
        return await self._inner.measure(volume_ids)

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID] | None:
        """List the inner driver's volumes, without faults."""
        return await self._inner.inventory(after, limit)

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume | None:
        """Return the inner driver's view of a volume, without faults."""
        return await self._inner.stat(volume_id, snapshot_ids)

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Sweep, without faults."""
        await self._inner.sweep(volume_id, leftovers)

    async def capacity(self) -> Capacity:
        """Return the inner driver's capacity."""
        return await self._inner.capacity()

    async def close(self) -> None:
        """Close the inner driver, then the journal, to which the inner driver's work may write until then."""
        await self._inner.close()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    @asynccontextmanager
    async def _with_faults(
        self, operation: str, volume_id: UUID, grant: Grant, size: int | None = None, snapshot_id: UUID | None = None
    ) -> AsyncIterator[Grant]:
        journal = OperationJournal(self._journal, operation, volume_id, grant, size, snapshot_id)
        subjects = (volume_id, snapshot_id) if snapshot_id else (volume_id,)
        journal.write("begun")
        try:
            if operation not in SEALS:
                await self._delay_and_wait_at_gate(grant)
            self._fail.inject(operation, *subjects)
            yield JournalGrant(grant, journal, HangSwitch(self._hang, subjects) if self._hang else None)
            self._fail_after.inject(operation, *subjects)
        except Exception as error:
            journal.write(_event_of(error), code=getattr(error, "code", type(error).__name__))
            raise

    async def _delay_and_wait_at_gate(self, grant: Grant) -> None:
        deadline = time.monotonic() + self._delay
        while (remaining := deadline - time.monotonic()) > 0:
            grant.check()
            await asyncio.sleep(min(remaining, DELAY_SLICE_SECONDS))
        while self._gate_closed():
            grant.check()
            await asyncio.sleep(GATE_POLL_SECONDS)

    def _gate_closed(self) -> bool:
        return self._gate is not None and self._gate.exists()


def _event_of(error: Exception) -> str:
    if isinstance(error, FenceRefused):
        return "refused"
    return "stopped" if isinstance(error, Stopped) else "failed"


def _seconds(milliseconds: str) -> float:
    if not milliseconds.isdecimal():
        raise ConfigurationError(f"delay_ms={milliseconds!r} is not a number of milliseconds")
    return int(milliseconds) / 1000


def _open_journal(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except OSError as error:
        raise ConfigurationError(f"the journal cannot be opened: {error}") from error


def open_driver(url: DriverUrl, threads: int) -> StorageDriver:
    """Open ``faulty+SCHEME:...``: the driver of SCHEME with faults, or that driver itself if no fault option is set."""
    options = {name: url.options.pop(name) for name in FaultInjector.OPTIONS if name in url.options}
    inner = open_inner(url.inner, threads)
    return FaultInjector(inner, options) if options else inner
