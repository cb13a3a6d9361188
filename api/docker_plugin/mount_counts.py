"""How often each holder has a volume mounted, in a file: the counts outlive the plugin, and end with the host.

Docker mounts a volume again with the same id while a container runs, for `docker cp` for example, and the first unmount
must not take the volume away from the container. The file belongs into /run: after a restart of the host nothing is
mounted.
"""

import json
import os
from collections import Counter
from pathlib import Path
from threading import Lock

import structlog

log = structlog.stdlib.get_logger()


class MountCounts:
    """Counts by volume name and holder; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Read the counts of the plugin that ran before. A damaged file counts as none."""
        self._path = path
        self._lock = Lock()
        self._counts = Counter[tuple[str, str]](_read(path))

    def add(self, volume: str, holder: str) -> None:
        """Count a mount."""
        with self._lock:
            self._counts[volume, holder] += 1
            self._write()

    def remove(self, volume: str, holder: str, *, every: bool = False) -> int:
        """Take a mount off, or every one, and return how many are left."""
        with self._lock:
            left = 0 if every else max(0, self._counts[volume, holder] - 1)
            if left:
                self._counts[volume, holder] = left
            else:
                self._counts.pop((volume, holder), None)
            self._write()
            return left

    def of(self, volume: str, holder: str) -> int:
        """Return how many mounts a holder has."""
        with self._lock:
            return self._counts[volume, holder]

    def _write(self) -> None:
        """Replace the file at once, so that a kill leaves the old or the new one."""
        rows = [[volume, holder, count] for (volume, holder), count in self._counts.items()]
        new = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode=0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(rows, file)
        new.replace(self._path)


def _read(path: Path) -> dict[tuple[str, str], int]:
    try:
        return {(str(volume), str(holder)): int(count) for volume, holder, count in json.loads(path.read_text())}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        log.warning("plugin.counts_unreadable", path=str(path), error=str(error))
        return {}
