"""A Redis that answers but refuses to be written to: nothing is lost, and nothing moves until somebody mends it.

arq takes it for a job that somebody else has claimed, and says so at DEBUG. Here it is said once, loudly, with what to
do, and once more when it is over.
"""

from typing import Final

import structlog
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

#: The beginning of Redis' own answer, and what to do about it.
_REMEDIES: Final = {
    "READONLY": "it is a replica: let CISTERN_REDIS_URL name the primary, or make it one (REPLICAOF NO ONE)",
    "OOM": "it is full: raise maxmemory, or find out what else is kept in it",
    "MISCONF": "it cannot save to its disk: make room there or mend it; Redis' own log says what is wrong",
    "NOREPLICAS": "it has too few replicas: bring them back, or lower min-replicas-to-write",
}
#: Answers of which redis-py takes the beginning away.
_PREFIX_BY_ERROR: Final[dict[type[Exception], str]] = {ReadOnlyError: "READONLY", OutOfMemoryError: "OOM"}
_UNKNOWN_REMEDY: Final = "Redis' own log may say what is wrong"

log = structlog.get_logger(__name__)


class WriteErrors:
    """What one process knows of it."""

    def __init__(self) -> None:
        self.condition: str | None = None

    def note(self, error: ResponseError) -> None:
        """Note that a write was refused; say so if that is news."""
        condition = _condition(error)
        if condition != self.condition:
            self.condition = condition
            remedy = _REMEDIES.get(condition, _UNKNOWN_REMEDY)
            log.error("redis.refuses_writes", condition=condition, error=str(error), remedy=remedy)

    def clear(self) -> None:
        """Note that a write was accepted; say so if that is news."""
        if self.condition is not None:
            log.info("redis.writable_again", condition=self.condition)
            self.condition = None


def _condition(error: ResponseError) -> str:
    named = _PREFIX_BY_ERROR.get(type(error))
    return named or next((word for word in _REMEDIES if word in str(error)), type(error).__name__)
