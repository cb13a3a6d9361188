"""Refusal of requests that a web page of another site can make a browser send.

A page at an address that resolves to this machine (DNS rebinding) has a foreign `Host`. A page of another site that
sends a form or a `fetch` here (cross-site request forgery) is named by the browser in `Sec-Fetch-Site` or `Origin`.
Clients that are not browsers send neither of the two, and are not concerned.
"""

from collections.abc import Collection
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from starlette.types import Scope

from api.problems import CROSS_SITE, HOST_MISSING, HOST_NOT_ALLOWED, ProblemType
from api.request_headers import RequestHeaders

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Values of `Sec-Fetch-Site` for the API's own pages, and for what the user has typed in.
_OWN_SITES: Final = frozenset({b"same-origin", b"none"})


class SiteRefusal(NamedTuple):
    """Why a request is refused."""

    problem: ProblemType
    detail: str


def site_refusal(scope: Scope, headers: RequestHeaders, allowed_hosts: Collection[str]) -> SiteRefusal | None:
    """Return why the request is refused, or None; ``allowed_hosts`` are allowed besides the names of loopback.

    The order of the checks of an unsafe request is that of OWASP's cheat sheet on cross-site request forgery:
    `Sec-Fetch-Site`, which every current browser sends, then `Origin` beside `Host`.
    """
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if not host:
        return SiteRefusal(HOST_MISSING, "A request needs exactly one Host header.")
    name = without_port(host)
    if name not in LOOPBACK_HOSTS and name not in allowed_hosts:
        return SiteRefusal(HOST_NOT_ALLOWED, "This API does not serve this host; CISTERN_HOSTS lists those it serves.")
    if scope["method"] not in _SAFE_METHODS and not _is_own_site(headers, host):
        detail = "A page of another site must not change anything; send the request from a client or an own page."
        return SiteRefusal(CROSS_SITE, detail)
    return None


def without_port(host: str) -> str:
    """Return the name in a `Host` header."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _is_own_site(headers: RequestHeaders, host: str) -> bool:
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site in _OWN_SITES
    # `Origin: null` (a sandboxed page, a file) has no host.
    return origin is None or urlsplit(origin.decode("latin-1").lower()).netloc == host
