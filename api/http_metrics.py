"""Counts requests for the metrics of the process, by the row of the table of routes that they belong to."""

import time
from typing import Final

from starlette.types import Message, Scope, Send

from api.access import row_of
from domain import metrics

#: The label of requests for paths, or with methods, that clients have made up: there may be any number of them.
OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def counted(scope: Scope, send: Send) -> Send:
    """Return a `send` that records the response to a request when it starts: a stream of events has no end."""
    started_at = time.monotonic()
    method = scope["method"] if scope["method"] in _METHODS else OTHER

    async def count_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            seconds = time.monotonic() - started_at
            metrics.current().request_answered(method, row_of(scope["path"]) or OTHER, message["status"], seconds)
        await send(message)

    return count_and_send
