"""A wrapper that delays, blocks or fails the operations of any driver and writes a journal of them.

Fault tests are judged by the journal: one line for each operation begun, published, refused, stopped or failed.
"""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from cistern_test_drivers.faults import OPERATIONS, Faults, HangSwitch
from cistern_test_drivers.journal import JournalGrant, OperationJournal
from domain.errors import ConfigurationError
from domain.storage.backends import DriverUrl
from domain.storage.backends import open_driver as open_inner
from domain.storage.context import Grant, Stopped
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused
from domain.storage.file.driver import FileDriver

DELAY_SLICE_SECONDS = 0.05
GATE_POLL_SECONDS = 0.01
SEALS = ("seal", "seal_snapshot")
SIGNATURES = {name: inspect.signature(getattr(StorageDriver, name)) for name in OPERATIONS}


class FaultInjector:
    """Delegates every operation to the inner driver, with the delays and faults of its options."""

    OPTIONS = ("delay_ms", "fail", "fail_after", "gate", "hang", "journal", "slow_calls")

    def __init__(self, inner: StorageDriver, options: Mapping[str, str]) -> None:
        if "hang" in options and not isinstance(inner, FileDriver):
            raise ConfigurationError("hang=... needs a driver that works in threads: faulty+file:")
        self._inner = inner
        self._hang = Path(options["hang"]) if "hang" in options else None
        self._slow_calls = Path(options["slow_calls"]) if "slow_calls" in options else None
        self._delay = _seconds(options.get("delay_ms", "0"))
        self._gate = Path(options["gate"]) if "gate" in options else None
        self._fail = Faults(options.get("fail", ""))
        self._fail_after = Faults(options.get("fail_after", ""))
        self._journal = _open_journal(options["journal"]) if "journal" in options else None

    def __getattr__(self, name: str) -> Any:
        """Return the inner driver's method, with faults if it is an operation."""
        method = getattr(self._inner, name)
        return partial(self._perform, name, method) if name in OPERATIONS else method

    async def close(self) -> None:
        """Close the inner driver, then the journal, to which the inner driver's work may write until then."""
        await self._inner.close()
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    async def _perform(self, operation: str, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        bound = SIGNATURES[operation].bind(self, *args, **options)
        named = bound.arguments
        # The volume in the journal of a clone is the new one.
        volume_id, snapshot_id = named.get("clone_id", named["volume_id"]), named.get("snapshot_id")
        grant: Grant = named["grant"]
        journal = OperationJournal(self._journal, operation, volume_id, grant, named.get("size"), snapshot_id)
        subjects = (volume_id, snapshot_id) if snapshot_id else (volume_id,)
        journal.write("begun")
        try:
            if operation not in SEALS:  # they bring delayed work to an end
                await self._delay_and_wait_at_gate(grant)
            self._fail.inject(operation, *subjects)
            hang_switch = HangSwitch(self._hang, subjects) if self._hang else None
            named["grant"] = JournalGrant(grant, journal, hang_switch, self._slow_calls)
            result = await method(*bound.args[1:], **bound.kwargs)
            self._fail_after.inject(operation, *subjects)
        except Exception as error:
            journal.write(_event_of(error), code=getattr(error, "code", type(error).__name__))
            raise
        return result

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
    return cast("StorageDriver", FaultInjector(inner, options)) if options else inner
