"""Simulates hung storage: the calling thread blocks without progress and cannot be stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

_POLL_SECONDS = 0.01


class HangSwitch:
    """Blocks the thread of one operation while a file exists that is empty or contains the id of a subject."""

    def __init__(self, file: Path, subjects: tuple[UUID, ...]) -> None:
        self._file = file
        self._subjects = set(map(str, subjects))

    def hang(self, write_event: Callable[[str], None]) -> None:
        """Block while the switch is on; call ``write_event`` once before."""
        if self._is_on():
            write_event("hanging")
            while self._is_on():
                time.sleep(_POLL_SECONDS)

    def _is_on(self) -> bool:
        try:
            ids = self._file.read_text().split()
        except FileNotFoundError:
            return False
        return not ids or bool(self._subjects.intersection(ids))
