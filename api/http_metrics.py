"""Records requests in the metrics of the process, by their row in the table of routes (`api.access`)."""

import time
from typing import Final

from starlette.types import Message, Scope, Send

from api.access import METHODS, row_of
from domain import metrics

#: The label of unknown paths and methods: clients may send any number of them.
OTHER: Final = "other"


def counted(scope: Scope, send: Send) -> Send:
    """Return a `send` that records a response when it starts, not when it ends: a stream of events may never end."""
    started_at = time.monotonic()
    method = scope["method"] if scope["method"] in METHODS else OTHER

    async def count_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            seconds = time.monotonic() - started_at
            metrics.current().request_answered(method, row_of(scope["path"]) or OTHER, message["status"], seconds)
        await send(message)

    return count_and_send
