"""Headers that tell a browser what it may do with a response, whatever the response is."""

from collections.abc import Iterable
from typing import Final

#: Scripts, styles, images and requests of this origin only, nothing inline, and no page may frame one of ours. `data:`
#: are the icons in Swagger UI's style sheet.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

RawHeaders = list[tuple[bytes, bytes]]


def with_security_headers(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Return the headers of a response with those for browsers added, but for what a route has set itself."""
    given = [*headers]
    names = {name.lower() for name, _ in given}
    return [*given, *(header for header in _HEADERS if header[0] not in names)]
