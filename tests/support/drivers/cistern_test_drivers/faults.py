"""Which operations the faulty driver is to fail: ``operation:code[*times][ id]``, separated by commas.

The id is a volume's or a snapshot's. ``@FILE`` names a file with one such line each, read afresh at every
operation, so that a test can turn failures on and off; replace that file in one step (rename), or a
half-written line may be read.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from domain.errors import ConfigurationError, StorageError
from domain.storage import errors

EVERY = "*"
OPERATIONS = (
    *("create", "expand", "delete", "seal"),
    *("take_snapshot", "restore_snapshot", "clone_snapshot", "delete_snapshot", "seal_snapshot"),
)
SPEC = re.compile(
    rf"(?P<operation>{'|'.join(OPERATIONS)}|\*):(?P<code>[a-z-]+)(\*(?P<times>[1-9]\d*))?( (?P<subject>\S+))?"
)
CODES: dict[str, type[StorageError]] = {
    kind.code: kind
    for kind in (
        errors.TransientStorageError,
        errors.StorageBusy,
        errors.PermanentStorageError,
        errors.StorageFull,
        errors.SizeUnsupported,
        errors.AccessDenied,
        errors.VolumeMissing,
        errors.SnapshotMissing,
        errors.FenceRefused,
    )
}


@dataclass(frozen=True)
class Fault:
    """One way to fail; ``times`` None means always, ``subject`` None whatever it is done to."""

    operation: str
    error: type[StorageError]
    times: int | None
    subject: str | None

    def matches(self, operation: str, *subjects: UUID) -> bool:
        """Tell whether this fault is meant for the operation on one of these."""
        meant = self.subject is None or self.subject in map(str, subjects)
        return meant and self.operation in (EVERY, operation)


class Faults:
    """What is still to fail in this process."""

    def __init__(self, spec: str) -> None:
        self._file = Path(spec[1:]) if spec.startswith("@") else None
        self._fixed = [] if self._file else [_parse(part) for part in spec.split(",") if part]
        self._struck: Counter[Fault] = Counter()

    def inject(self, operation: str, *subjects: UUID) -> None:
        """Raise the first fault that is meant for this operation and not used up."""
        for fault in self._present():
            spent = fault.times is not None and self._struck[fault] >= fault.times
            if fault.matches(operation, *subjects) and not spent:
                self._struck[fault] += 1
                raise fault.error(f"The faulty driver was told to fail: {fault.error.code}.")

    def _present(self) -> list[Fault]:
        if self._file is None:
            return self._fixed
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [_parse(line.strip()) for line in lines if line.strip()]


def _parse(text: str) -> Fault:
    match = SPEC.fullmatch(text)
    if not match:
        raise ConfigurationError(f"{text!r} is no fault; write operation:code, such as expand:storage-full")
    if match["code"] not in CODES:
        raise ConfigurationError(f"{match['code']!r} is no storage error; choose from {', '.join(CODES)}")
    times = int(match["times"]) if match["times"] else None
    return Fault(match["operation"], CODES[match["code"]], times, match["subject"])
