"""A Redis that answers but refuses writes or commands: no job is lost, but none is dispatched until that is fixed.

arq mistakes the error for a job claimed by another worker and logs it at DEBUG. This module logs it as an error, once
and with a remedy, and logs when Redis accepts writes again.
"""

import re
from typing import Final

import structlog
from redis.exceptions import (
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

#: The prefix of the error of a replica.
_REPLICA: Final = "READONLY"
#: The prefix of the error of a command that the user may not run.
_FORBIDDEN: Final = "NOPERM"
#: The prefix of Redis' error message, and the remedy.
_REMEDIES: Final = {
    _REPLICA: "it is a replica: set CISTERN_REDIS_URL to the primary, or promote it (REPLICAOF NO ONE)",
    "OOM": "it is out of memory: raise maxmemory, or find out what else is stored in it",
    "MISCONF": "it cannot save to its disk: free space or repair the disk; see the log of Redis",
    _FORBIDDEN: "allow this command to the user of CISTERN_REDIS_URL; docs/operations.md lists all that are needed",
    "CLUSTER": "it is a cluster, which Cistern does not use: set CISTERN_REDIS_URL to a server without cluster mode",
    "WRONGTYPE": "another program has written to the key that the error names: delete it; messages are sent again",
    "NOREPLICAS": "it has too few replicas: restore them, or lower min-replicas-to-write",
}
#: Errors whose prefix redis-py removes from the message.
_PREFIX_BY_ERROR: Final[dict[type[Exception], str]] = {
    ReadOnlyError: _REPLICA,
    OutOfMemoryError: "OOM",
    NoPermissionError: _FORBIDDEN,
    MovedError: "CLUSTER",
}
_UNKNOWN_REMEDY: Final = "see the log of Redis"

log = structlog.get_logger(__name__)


class WriteErrors:
    """Whether Redis refuses writes, as known to one process."""

    def __init__(self) -> None:
        self.condition: str | None = None
        self._command: str | None = None

    def note(self, error: ResponseError) -> None:
        """Record that a write was refused; log it if the condition is new, or the command that is forbidden.

        The error of a script may not name the command.
        """
        condition, command = _condition(error), _forbidden_command(error)
        if condition != self.condition or (command is not None and command != self._command):
            self.condition, self._command = condition, command
            log.error("redis.refuses_writes", condition=condition, error=str(error), remedy=self.remedy)

    @property
    def remedy(self) -> str:
        """What to do about the condition."""
        return _REMEDIES.get(self.condition or "", _UNKNOWN_REMEDY)

    def note_message(self) -> None:
        """Record that a message was accepted; another command may be forbidden all the same."""
        if self.condition != _FORBIDDEN:
            self.clear()

    def clear(self) -> None:
        """Record that all commands were accepted; log it if one was refused before."""
        if self.condition is not None:
            log.info("redis.writable_again", condition=self.condition)
            self.condition = self._command = None


def _forbidden_command(error: ResponseError) -> str | None:
    """Return the name of the command that the user may not run; None if the error does not have it."""
    found = re.search(r"permissions to run the '(\S+)' command", str(error))
    return found[1] if found else None


def is_from_replica(error: ResponseError) -> bool:
    """Return whether a replica refused to write; a new connection to the same address may lead to the primary."""
    return _condition(error) == _REPLICA


def is_wrong_type(error: ResponseError) -> bool:
    """Return whether a key does not have the type, or a number not the form, that Cistern or arq gave it."""
    return "WRONGTYPE" in str(error) or "not an integer" in str(error)


def _condition(error: ResponseError) -> str:
    if str(error).startswith("UNBLOCKED"):  # what a waiting client is told when its primary becomes a replica
        return _REPLICA
    if "can't run this command" in str(error):  # what a script is told
        return _FORBIDDEN
    if str(error).startswith("CROSSSLOT"):  # which redis-py knows as an error of its clients for clusters only
        return "CLUSTER"
    prefix = _PREFIX_BY_ERROR.get(type(error))
    return prefix or next((prefix for prefix in _REMEDIES if prefix in str(error)), type(error).__name__)
