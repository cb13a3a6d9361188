"""Requests whose responses are held, until a job has ended or for as long as the client follows it, are counted.

Each of them costs memory and a connection for up to an hour, so that their number is limited: in all, per key, and per
project, whose owners may make any number of keys.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final
from uuid import UUID

from starlette.requests import Request

from domain.access.model import Principal
from domain.errors import TooManyHeldRequests

#: Maximum number of held requests in one process, of one key, and of one project, which leaves room for another one.
_MAX_HELD, _MAX_PER_CALLER, _MAX_PER_PROJECT = 500, 100, 400
#: Seconds after which a stream of events ends, and the client opens the next one.
MAX_STREAM_SECONDS: Final = 3600.0


class HeldRequests:
    """The held requests of one process."""

    def __init__(self) -> None:
        #: By key and by project, and all by None.
        self._held = Counter[UUID | None]()

    @contextmanager
    def hold(self, caller: UUID | None, project: UUID | None = None) -> Iterator[None]:
        """Count a request as held for the duration of the block.

        ``caller`` is its key, None if nobody knows who asks: such requests are limited only in all, because they may
        come from anybody. ``project`` is None for system keys, which no project may keep from what they do.

        Raises:
            TooManyHeldRequests: there are too many already.
        """
        if caller is not None and self._held[caller] >= _MAX_PER_CALLER:
            raise TooManyHeldRequests(f"{_MAX_PER_CALLER} requests of yours are being held; try again later.")
        if project is not None and self._held[project] >= _MAX_PER_PROJECT:
            raise TooManyHeldRequests(f"{_MAX_PER_PROJECT} requests of your project are being held; try again later.")
        if self._held[None] >= _MAX_HELD:
            raise TooManyHeldRequests
        counted = {caller, project, None}
        self._held.update(counted)
        try:
            yield
        finally:
            self._held.subtract(counted)
            for one in counted:
                if not self._held[one]:
                    del self._held[one]


def holding(request: Request) -> AbstractContextManager[None]:
    """Count a request as held for the duration of the block.

    Raises:
        TooManyHeldRequests: there are too many already.
    """
    held: HeldRequests = request.app.state.held_requests
    principal: Principal | None = getattr(request.state, "principal", None)
    return held.hold(None) if principal is None else held.hold(principal.key_id, principal.counted_project)
