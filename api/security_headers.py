"""Headers that tell a browser what it may do with a response, whatever the response is."""

from collections.abc import Sequence
from typing import Final

from api.access import PAGES, row_of

RawHeaders = Sequence[tuple[bytes, bytes]]

#: For responses that are no page: a browser that shows one loads nothing for it. It is short, as every response has it.
POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
#: For pages: scripts, styles, images and requests of this origin only, nothing inline, and no page may frame one of
#: ours. `data:` are the icons in Swagger UI's style sheet.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: Pages that are open to all.
_OPEN: Final = ("/docs", "/problems", "/problems/{}")


def security_headers(path: str) -> RawHeaders:
    """Return the headers for browsers of every response to a request for this path."""
    if path.startswith("/api/"):  # most requests: not looked up
        return _FOR_OTHERS
    return _FOR_PAGES if (row := row_of(path)) in PAGES or row in _OPEN else _FOR_OTHERS


def _with_policy(policy: str) -> RawHeaders:
    return (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )


_FOR_PAGES: Final = _with_policy(PAGE_POLICY)
_FOR_OTHERS: Final = _with_policy(POLICY)
