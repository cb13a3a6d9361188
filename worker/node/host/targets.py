"""Where holders may have volumes mounted. Users who may attach volumes choose the path, and the agent is root."""

from collections.abc import Sequence
from pathlib import Path
from pwd import getpwuid
from typing import Final

from worker.node.host.errors import TargetRefused
from worker.node.host.mounts import resolved

#: What the host runs, or believes, is in these: a volume there could make its owner root.
_SYSTEM: Final = (
    *map(Path, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run/systemd")),
    *map(Path, ("/sbin", "/sys", "/usr", "/var/spool")),
    *(Path(getpwuid(0).pw_dir) / name for name in (".config", ".ssh")),
)


class Targets:
    """The directories of one host."""

    def __init__(self, base_dir: Path, allowed: Sequence[Path] = ()) -> None:
        """Refuse what is below ``base_dir``, and what is not below an ``allowed`` directory if there are any."""
        self._base_dir = base_dir
        self._allowed = allowed

    def require(self, target: Path) -> Path:
        """Return the directory without symbolic links.

        Raises:
            TargetRefused: nothing may be mounted there.
        """
        directory = resolved(target)
        if directory.is_relative_to(self._base_dir):
            raise TargetRefused(f"{directory} is below CISTERN_NODE_DIR.")
        if self._allowed and not any(directory.is_relative_to(resolved(path)) for path in self._allowed):
            raise TargetRefused(f"{directory} is not below a directory of CISTERN_NODE_PATHS.")
        if not self._allowed and any(directory.is_relative_to(path) for path in _SYSTEM):
            raise TargetRefused(f"{directory} belongs to the system; CISTERN_NODE_PATHS can allow it.")
        return directory
