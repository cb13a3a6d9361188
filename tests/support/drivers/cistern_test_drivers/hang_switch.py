"""Storage that does not answer: the thread that asked stands still, without a sign of life, and cannot be ended."""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

_POLL_SECONDS = 0.01


class HangSwitch:
    """What holds one operation's thread for as long as the file exists: all of them, or those whose ids are in it."""

    def __init__(self, file: Path, subjects: tuple[UUID, ...]) -> None:
        self._file = file
        self._subjects = set(map(str, subjects))

    def hang(self, say: Callable[[str], None]) -> None:
        """Come back when there is nothing to wait for; ``say`` that it hangs, if it does."""
        if self._is_meant():
            say("hanging")
            while self._is_meant():
                time.sleep(_POLL_SECONDS)

    def _is_meant(self) -> bool:
        try:
            meant = self._file.read_text().split()
        except FileNotFoundError:
            return False
        return not meant or bool(self._subjects.intersection(meant))
