"""A wrapper that makes any backend slow, failing or held up, and keeps a journal: for tests and benchmarks.

The journal is what fault tests judge by: one line for each operation begun, published and ended badly.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from domain.errors import ConfigurationError
from domain.storage.driver import Capacity, FenceRefused, Grant, Stopped, StopReason, StorageDriver, Usage
from domain.storage.faults import Faults

SLICE = 0.05
POLL = 0.01


class FaultyDriver:
    """Does as the inner driver does, later or not at all."""

    OPTIONS = ("delay_ms", "fail", "fail_after", "gate", "journal")

    def __init__(self, inner: StorageDriver, options: Mapping[str, str]) -> None:
        self._inner = inner
        self._delay = _seconds(options.get("delay_ms", "0"))
        self._gate = Path(options["gate"]) if "gate" in options else None
        self._fail = Faults(options.get("fail", ""))
        self._fail_after = Faults(options.get("fail_after", ""))
        self._journal = _open_journal(options["journal"]) if "journal" in options else None

    def path(self, volume_id: UUID) -> str | None:
        """Where the inner driver keeps the bytes."""
        return self._inner.path(volume_id)

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Create, with disturbances."""
        async with self._disturbed("create", volume_id, grant, size) as watched:
            return await self._inner.create(volume_id, size, watched)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Expand, with disturbances."""
        async with self._disturbed("expand", volume_id, grant, size) as watched:
            return await self._inner.expand(volume_id, size, watched)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Delete, with disturbances."""
        async with self._disturbed("delete", volume_id, grant) as watched:
            await self._inner.delete(volume_id, watched)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Seal; may fail, but is neither delayed nor held up, for it brings delayed work to an end."""
        async with self._disturbed("seal", volume_id, grant) as watched:
            return await self._inner.seal(volume_id, watched)

    async def measure(self, volume_id: UUID) -> Usage | None:
        """Measure, undisturbed."""
        return await self._inner.measure(volume_id)

    async def capacity(self) -> Capacity:
        """Report the inner driver's capacity."""
        return await self._inner.capacity()

    async def close(self) -> None:
        """Close the inner driver, then the journal it may still have written to."""
        await self._inner.close()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    @asynccontextmanager
    async def _disturbed(
        self, operation: str, volume_id: UUID, grant: Grant, size: int | None = None
    ) -> AsyncIterator[Grant]:
        witness = Witness(self._journal, operation, volume_id, grant, size)
        witness.note("begun")
        try:
            if operation != "seal":
                await self._hold_up(grant)
            self._fail.strike(operation, volume_id)
            yield WatchedGrant(grant, witness)
            self._fail_after.strike(operation, volume_id)
        except Exception as error:
            witness.note(_ending(error), code=getattr(error, "code", type(error).__name__))
            raise

    async def _hold_up(self, grant: Grant) -> None:
        ends = time.monotonic() + self._delay
        while (left := ends - time.monotonic()) > 0:
            grant.check()
            await asyncio.sleep(min(left, SLICE))
        while self._gate_closed():
            grant.check()
            await asyncio.sleep(POLL)

    def _gate_closed(self) -> bool:
        return self._gate is not None and self._gate.exists()


@dataclass(frozen=True)
class Witness:
    """Writes down what becomes of one operation."""

    journal: int | None
    operation: str
    volume_id: UUID
    grant: Grant
    size: int | None

    def note(self, event: str, **more: Any) -> None:
        """Append one line, in one write, so that lines of several processes do not mix."""
        if self.journal is None:
            return
        line = {
            "event": event,
            "operation": self.operation,
            "volume_id": str(self.volume_id),
            "job_id": str(self.grant.job_id),
            "fence": self.grant.fence,
            "pid": os.getpid(),
            "at": time.time_ns(),
        }
        if self.size is not None:
            line["size"] = self.size
        os.write(self.journal, (json.dumps(line | more) + "\n").encode())


class WatchedGrant(Grant):
    """Another face of the same grant, which writes down the moment of publishing."""

    def __init__(self, original: Grant, witness: Witness) -> None:
        # Grant's own __init__ is not called: without attributes of its own, this one always shows the
        # original's, so whoever stops or extends the original does so for this one too.
        self._original = original
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def extend(self, deadline: float) -> None:
        """Extend the original."""
        self._original.extend(deadline)

    def stop(self, reason: StopReason) -> None:
        """Stop the original."""
        self._original.stop(reason)

    def check(self) -> None:
        """Ask the original, which may be a subclass with a mind of its own."""
        self._original.check()

    def published(self, operation: str, volume_id: UUID) -> None:
        """Write it down, still under the volume's lock, and pass it on."""
        self._witness.note("published")
        self._original.published(operation, volume_id)


def _ending(error: Exception) -> str:
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
        raise ConfigurationError(f"the journal cannot be written: {error}") from error
