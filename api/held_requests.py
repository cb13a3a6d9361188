"""Requests whose responses are held, until a job has ended or for as long as the client follows it, are counted.

Each of them costs memory and a connection for up to an hour, so that their number is limited, in all and per caller.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final
from uuid import UUID

from starlette.requests import Request

from domain.errors import TooManyHeldRequests

#: Maximum number of held requests in one process, and of one caller.
_MAX_HELD, _MAX_PER_CALLER = 500, 100
#: Seconds after which a stream of events ends, and the client opens the next one.
MAX_STREAM_SECONDS: Final = 3600.0


class HeldRequests:
    """The held requests of one process."""

    def __init__(self) -> None:
        self._held = Counter[UUID | None]()

    @contextmanager
    def hold(self, caller: UUID | None) -> Iterator[None]:
        """Count a request as held for the duration of the block; ``caller`` is its key, None if nobody knows who asks.

        Requests of unknown callers are limited only in all: they may come from anybody.

        Raises:
            TooManyHeldRequests: there are too many already.
        """
        if caller is not None and self._held[caller] >= _MAX_PER_CALLER:
            raise TooManyHeldRequests(f"{_MAX_PER_CALLER} requests of yours are being held; try again later.")
        if self._held.total() >= _MAX_HELD:
            raise TooManyHeldRequests
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


def holding(request: Request) -> AbstractContextManager[None]:
    """Count a request as held for the duration of the block.

    Raises:
        TooManyHeldRequests: there are too many already.
    """
    held: HeldRequests = request.app.state.held_requests
    principal = getattr(request.state, "principal", None)
    return held.hold(None if principal is None else principal.key_id)
