"""The headers of a request, read once by the gate for everything that looks some of them up."""

from collections import Counter
from collections.abc import Mapping

from starlette.types import Scope

RequestHeaders = Mapping[bytes, bytes]


def read_headers(scope: Scope) -> RequestHeaders:
    """Return the headers by name; one that is given twice has no meaning where one is expected, and is empty."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if len(headers) != len(scope["headers"]):
        given = Counter(name for name, _ in scope["headers"])
        headers.update((name, b"") for name, count in given.items() if count > 1)
    return headers
