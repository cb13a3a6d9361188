"""What is mounted for each holder, how often and where, in a file that outlives the plugin, and ends with the host.

Docker mounts a volume again with the same id while a container runs, for `docker cp` for example, and the first unmount
must not take the volume away from the container. The file belongs into /run: after a restart of the host nothing is
mounted.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import structlog

log = structlog.stdlib.get_logger()


class HeldMount(NamedTuple):
    """How many times a holder has a volume mounted, and where."""

    times: int
    path: str


class Mounts:
    """Mounts by volume name and holder; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Read what the plugin that ran before has mounted. A damaged file counts as none."""
        self._path = path
        self._lock = Lock()
        self._mounts = _read(path)

    def add(self, volume: str, holder: str, path: str) -> None:
        """Count a mount."""
        with self._lock:
            self._mounts[volume, holder] = HeldMount(self._count(volume, holder) + 1, path)
            self._write()

    def remove(self, volume: str, holder: str, *, every: bool = False) -> int:
        """Take a mount off, or every one, and return how many are left."""
        with self._lock:
            left = 0 if every else max(0, self._count(volume, holder) - 1)
            if left:
                self._mounts[volume, holder] = self._mounts[volume, holder]._replace(times=left)
            else:
                self._mounts.pop((volume, holder), None)
            self._write()
            return left

    def path(self, volume: str, holder: str) -> str | None:
        """Return where a holder has a volume mounted; None if it has not."""
        with self._lock:
            mount = self._mounts.get((volume, holder))
            return None if mount is None else mount.path

    def _count(self, volume: str, holder: str) -> int:
        mount = self._mounts.get((volume, holder))
        return 0 if mount is None else mount.times

    def _write(self) -> None:
        """Replace the file at once, so that a kill leaves the old or the new one."""
        rows = [[volume, holder, *mount] for (volume, holder), mount in self._mounts.items()]
        new = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode=0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(rows, file)
        new.replace(self._path)


def _read(path: Path) -> dict[tuple[str, str], HeldMount]:
    try:
        rows = json.loads(path.read_text())
        return {(str(volume), str(holder)): HeldMount(int(count), str(where)) for volume, holder, count, where in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        log.warning("plugin.mounts_unreadable", path=str(path), error=str(error))
        return {}
