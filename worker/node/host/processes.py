"""Which processes use a directory, for the message to the user. By names only: looking at the files could block."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_SHOWN: Final = 3
_PROC: Final = Path("/proc")


def using(directory: Path) -> list[str]:
    """Return some processes that have a file below the directory open or work in it, such as "4711 (postgres)"."""
    found = []
    for entry in sorted(_PROC.glob("[0-9]*"), key=lambda process: int(process.name)):
        with suppress(OSError):
            if any(_is_in(path, str(directory)) for path in _used(entry)):
                found.append(f"{entry.name} ({(entry / 'comm').read_text().strip()})")
        if len(found) == MAX_SHOWN:
            break
    return found


def _used(process: Path) -> Iterator[str]:
    links = (process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir())
    return filter(None, map(_target, links))


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return None


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
