"""The key of the command line: the file that `cistern up` writes for its user, or ``CISTERN_KEY``."""

import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from domain.errors import ConfigurationError

KEY_FILE: Final = "key"
_PREFIX: Final = "Authorization: Bearer "
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def write_key_file(data_dir: Path, text: str) -> None:
    """Write a key to DATA_DIR/key, for its owner only: as a header, for ``curl -H @FILE``."""
    path = data_dir / KEY_FILE
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode=0o600), "w") as file:
        file.write(f"{_PREFIX}{text}\n")


def read_key_file(data_dir: Path) -> str | None:
    """Return the key in DATA_DIR/key; None if there is no such file.

    Raises:
        ConfigurationError: the file belongs to another user, or others may read it.
    """
    path = data_dir / KEY_FILE
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    with file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigurationError(f"{path}: it must belong to you, and nobody else may read it")
        return file.read().removeprefix(_PREFIX).strip()


def authorization(url: str) -> dict[str, str]:
    """Return the headers with the key in ``CISTERN_KEY``, or for an API on this machine with that of `cistern up`.

    ``CISTERN_PROJECT`` names the project for a system key.

    Raises:
        ConfigurationError: as `read_key_file`.
    """
    key = os.environ.get("CISTERN_KEY")
    if key is None and urlsplit(url).hostname in _LOOPBACK:
        key = read_key_file(Path(os.environ.get("CISTERN_DATA_DIR") or ".cistern"))
    project = os.environ.get("CISTERN_PROJECT")
    headers = {} if key is None else {"Authorization": f"Bearer {key.strip()}"}
    return headers if project is None else {**headers, "Cistern-Project": project}
