"""The operations that the fault injector fails: ``operation:code[*times][ id]``, separated by commas.

The id is that of a volume or snapshot. ``@FILE`` names a file with one fault per line. It is read again at every
operation, so a test can turn faults on and off. Replace the file by a rename, or a half-written line may be read.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from domain.errors import ConfigurationError, StorageError
from domain.storage import errors

EVERY = "*"
POLL_SECONDS = 0.01
OPERATIONS = (
    *("create", "expand", "delete", "seal", "isolate", "grow_filesystem"),
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
        errors.VolumeInUse,
        errors.SnapshotTorn,
        errors.FilesystemFailed,
        errors.FenceRefused,
    )
}


@dataclass(frozen=True)
class Fault:
    """One fault. ``times`` None means always; ``subject`` None means any volume or snapshot."""

    operation: str
    error: type[StorageError]
    times: int | None
    subject: str | None

    def matches(self, operation: str, *subjects: UUID) -> bool:
        """Return whether this fault applies to the operation on one of the subjects."""
        subject_matches = self.subject is None or self.subject in map(str, subjects)
        return subject_matches and self.operation in (EVERY, operation)


class Faults:
    """The faults of one option, and how often each was injected by this process."""

    def __init__(self, spec: str) -> None:
        self._file = Path(spec[1:]) if spec.startswith("@") else None
        self._fixed = [] if self._file else [_parse(fault) for fault in spec.split(",") if fault]
        self._injected: Counter[Fault] = Counter()

    def inject(self, operation: str, *subjects: UUID) -> None:
        """Raise the first fault that applies to this operation and is not used up."""
        for fault in self._current():
            used_up = fault.times is not None and self._injected[fault] >= fault.times
            if fault.matches(operation, *subjects) and not used_up:
                self._injected[fault] += 1
                raise fault.error(f"Injected fault: {fault.error.code}.")

    def _current(self) -> list[Fault]:
        if self._file is None:
            return self._fixed
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [_parse(line.strip()) for line in lines if line.strip()]


class HangSwitch:
    """Simulates hung storage: blocks the thread of one operation, which then cannot be stopped.

    It blocks while a file exists that is empty or contains the name of a subject, such as its id.
    """

    def __init__(self, file: Path, subjects: Iterable[object]) -> None:
        self._file = file
        self._subjects = set(map(str, subjects))

    def hang(self, write_event: Callable[[str], None]) -> None:
        """Block while the switch is on; call ``write_event`` once before."""
        if self._is_on():
            write_event("hanging")
            while self._is_on():
                time.sleep(POLL_SECONDS)

    def _is_on(self) -> bool:
        try:
            ids = self._file.read_text().split()
        except FileNotFoundError:
            return False
        return not ids or bool(self._subjects.intersection(ids))


def _parse(text: str) -> Fault:
    match = SPEC.fullmatch(text)
    if not match:
        raise ConfigurationError(f"{text!r} is not a fault; write operation:code, such as expand:storage-full")
    if match["code"] not in CODES:
        raise ConfigurationError(f"{match['code']!r} is not a storage error; choose from {', '.join(CODES)}")
    times = int(match["times"]) if match["times"] else None
    return Fault(match["operation"], CODES[match["code"]], times, match["subject"])
