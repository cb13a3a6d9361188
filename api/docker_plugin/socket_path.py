"""The socket of the plugin: one that no process serves any more is replaced, any other is left alone."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domain.errors import ConfigurationError


@contextmanager
def owned_socket_path(path: Path) -> Iterator[None]:
    """Own a path for a socket, at which there is nothing yet; afterwards what is there is removed.

    A lock beside it is held meanwhile: of two plugins that start at once, neither removes the socket of the other.

    Raises:
        ConfigurationError: another process serves it, something else is there, or the directory cannot be written to.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}: run the plugin as root, or name another --socket"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(f"{path}: another plugin serves this socket") from None
        _remove_stale(path)
        yield
        with suppress(FileNotFoundError):
            path.unlink()
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path}: it is no socket, and is left alone: name another --socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    raise ConfigurationError(f"{path}: another program serves this socket")
