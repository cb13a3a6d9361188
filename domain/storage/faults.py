"""Which operations the faulty driver is to fail: ``operation:code[*times][ volume]``, separated by commas.

``@FILE`` names a file with one such line each, read afresh at every operation, so that a test can turn
failures on and off; replace that file in one step (rename), or a half-written line may be read.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from domain.errors import ConfigurationError, StorageError
from domain.storage import driver

EVERY = "*"
SPEC = re.compile(
    r"(?P<operation>create|expand|delete|seal|\*):(?P<code>[a-z-]+)"
    r"(\*(?P<times>[1-9]\d*))?( (?P<volume>\S+))?"
)
CODES: dict[str, type[StorageError]] = {
    kind.code: kind
    for kind in (
        driver.TransientStorageError,
        driver.StorageBusy,
        driver.PermanentStorageError,
        driver.StorageFull,
        driver.SizeUnsupported,
        driver.AccessDenied,
        driver.VolumeMissing,
        driver.FenceRefused,
    )
}


@dataclass(frozen=True)
class Fault:
    """One way to fail; ``times`` None means always, ``volume`` None any volume."""

    operation: str
    error: type[StorageError]
    times: int | None
    volume: str | None

    def meets(self, operation: str, volume_id: UUID) -> bool:
        """Tell whether this fault is meant for the operation on the volume."""
        return self.operation in (EVERY, operation) and self.volume in (None, str(volume_id))


class Faults:
    """What is still to fail in this process."""

    def __init__(self, spec: str) -> None:
        self._file = Path(spec[1:]) if spec.startswith("@") else None
        self._fixed = [] if self._file else [_parse(part) for part in spec.split(",") if part]
        self._struck: Counter[Fault] = Counter()

    def strike(self, operation: str, volume_id: UUID) -> None:
        """Raise the first fault that is meant for this operation and not used up."""
        for fault in self._present():
            spent = fault.times is not None and self._struck[fault] >= fault.times
            if fault.meets(operation, volume_id) and not spent:
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
    return Fault(match["operation"], CODES[match["code"]], times, match["volume"])
