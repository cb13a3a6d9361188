"""Writes the events of an operation into the fault injector's journal."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from cistern_test_drivers.faults import HangSwitch
from domain.storage.context import Grant, StopReason


@dataclass(frozen=True)
class OperationJournal:
    """The journal of one operation.

    ``volume_id`` is the volume that the operation changes or reads, not always the subject that is published: taking
    and deleting a snapshot are recorded for its volume, cloning a snapshot for the new volume.
    """

    journal: int | None
    operation: str
    volume_id: UUID
    grant: Grant
    size: int | None = None
    snapshot_id: UUID | None = None

    def write(self, event: str, **details: Any) -> None:
        """Append one line in a single write, so that the lines of several processes do not mix."""
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
        if self.snapshot_id is not None:
            line["snapshot_id"] = str(self.snapshot_id)
        os.write(self.journal, (json.dumps(line | details) + "\n").encode())


class JournalGrant(Grant):
    """A proxy for a grant that writes the moment of publishing into the journal."""

    def __init__(
        self,
        original: Grant,
        journal: OperationJournal,
        hang_switch: HangSwitch | None = None,
        slow_calls: Path | None = None,
    ) -> None:
        # Grant.__init__ is not called: a proxy without attributes of its own always reads the original's, so
        # stopping or extending the original applies to the proxy too.
        self._original = original
        self._journal = journal
        self._hang_switch = hang_switch
        self._slow_calls = slow_calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a private attribute that is not set yet would recurse without end
            raise AttributeError(name)
        return getattr(self._original, name)

    def extend(self, deadline: float) -> None:
        """Extend the original."""
        self._original.extend(deadline)

    def stop(self, reason: StopReason) -> None:
        """Stop the original."""
        self._original.stop(reason)

    def check(self) -> None:
        """Hang while the switch is on, then check the original, which may be a subclass that overrides this."""
        if self._hang_switch is not None:
            self._hang_switch.hang(self._journal.write)
        self._original.check()

    @contextmanager
    def blocking_call(self, name: str) -> Iterator[None]:
        """Make a blocking call of the original, and stay in it while the file of slow calls has its name."""
        with self._original.blocking_call(name):
            if self._slow_calls is not None:
                HangSwitch(self._slow_calls, (name,)).hang(self._journal.write)
            yield

    def report(self, done: int, total: int) -> None:
        """Report to the original."""
        self._original.report(done, total)

    def on_published(self, operation: str, subject_id: UUID) -> None:
        """Write the event, still under the subject's lock, and call the original's hook."""
        self._journal.write("published")
        self._original.on_published(operation, subject_id)
