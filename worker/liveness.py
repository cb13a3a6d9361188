"""A sign of life for whoever looks from outside, such as a container's health check: a file as old as the last beat."""

from pathlib import Path
from typing import Final, Self

import structlog

from domain.errors import ConfigurationError

log = structlog.get_logger(__name__)


class LivenessFile:
    """Touches the file, if there is to be one, after each beat that has reached PostgreSQL."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    @classmethod
    def open(cls, file: Path | None) -> Self:
        """Make the file, in a worker that PostgreSQL has just let in.

        Raises:
            ConfigurationError: it cannot be written.
        """
        try:
            if file is not None:
                file.open("a").close()  # a folder can be touched, too
                file.touch()
        except OSError as error:
            raise ConfigurationError(f"CISTERN_HEARTBEAT_FILE: {error.strerror}: {str(file)!r}") from error
        return cls(file)

    def touch(self) -> None:
        """Touch the file; if that fails the jobs are none the worse for it, but the worker looks dead."""
        try:
            if self._file is not None:
                self._file.touch()
        except OSError as error:
            log.warning("liveness.write_failed", error=str(error))


NO_LIVENESS_FILE: Final = LivenessFile(None)
