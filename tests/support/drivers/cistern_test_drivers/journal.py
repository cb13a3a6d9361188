"""Who watches what becomes of an operation, and writes it into the faulty driver's journal."""

import json
import os
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from cistern_test_drivers.hang_switch import HangSwitch
from domain.storage.context import Grant, StopReason


@dataclass(frozen=True)
class OperationJournal:
    """Writes down what becomes of one operation.

    ``volume_id`` is the volume that the operation is about, which is not always what is published: taking
    and deleting a snapshot are things that happen to its volume, cloning one happens to the new volume.
    """

    journal: int | None
    operation: str
    volume_id: UUID
    grant: Grant
    size: int | None = None
    snapshot_id: UUID | None = None

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
        if self.snapshot_id is not None:
            line["snapshot_id"] = str(self.snapshot_id)
        os.write(self.journal, (json.dumps(line | more) + "\n").encode())


class JournalGrant(Grant):
    """Another face of the same grant, which writes down the moment of publishing."""

    def __init__(self, original: Grant, witness: OperationJournal, hanging: HangSwitch | None = None) -> None:
        # Grant's own __init__ is not called: without attributes of its own, this one always shows the
        # original's, so whoever stops or extends the original does so for this one too.
        self._original = original
        self._witness = witness
        self._hanging = hanging

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what is our own and not there yet must not be looked for in itself
            raise AttributeError(name)
        return getattr(self._original, name)

    def extend(self, deadline: float) -> None:
        """Extend the original."""
        self._original.extend(deadline)

    def stop(self, reason: StopReason) -> None:
        """Stop the original."""
        self._original.stop(reason)

    def check(self) -> None:
        """Ask the original, which may be a subclass with a mind of its own; but hang before, if it is time to."""
        if self._hanging is not None:
            self._hanging.hang(self._witness.note)
        self._original.check()

    def report(self, done: int, total: int) -> None:
        """Report to the original."""
        self._original.report(done, total)

    def publishing(self, operation: str, subject_id: UUID) -> None:
        """Write it down, still under the subject's lock, and pass it on."""
        self._witness.note("published")
        self._original.publishing(operation, subject_id)
